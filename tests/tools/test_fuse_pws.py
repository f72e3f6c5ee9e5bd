"""Tests of tools/model_converters/fuse_pws.py."""

import copy
import json
import re
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from conftest import ROOT, load_config
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet import fuse_pws
from pws_mmdet.convert import fuse_detector
from pws_mmdet.layers import NoNorm, ReparamConv2d
from pws_mmdet.models import PWSVGG

MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_pws_digits.py'
SSD = 'configs/mini/ssd96_vgg16_pws_digits.py'
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
# A module that is None cannot be imported. MMDetection imports mmpretrain where it is
# installed, and with it a torchvision that may be broken; pws_mmdet mends that.
LOAD_WITHOUT_PACKAGE = """
import sys
sys.modules['pws_mmdet'] = sys.modules['mmpretrain'] = None
import torch
torch.set_num_threads(1)
from mmdet.apis import inference_detector, init_detector
name, image, out = sys.argv[1:]
model = init_detector(name + '.py', name + '.pth', device='cpu')
assert not any(m.split('.')[0] == 'pws_mmdet' and v for m, v in sys.modules.items())
found = inference_detector(model, image).pred_instances
torch.save({k: found[k] for k in ('bboxes', 'scores', 'labels', 'masks')}, out)
"""


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/model_converters/fuse_pws.py')


@pytest.fixture
def detector(tmp_path, digits):
    """Write a config like a shipped one, and a checkpoint of random weights."""

    def make(base, name='mine', changes='', ema=False):
        path = tmp_path / f'{name}.py'
        path.write_text(
            f'_base_ = {str(ROOT / base)!r}\n'
            f'test_dataloader = dict(\n'
            f'    num_workers=0, dataset=dict(data_root={str(digits)!r})\n)\n{changes}'
        )
        cfg = Config.fromfile(path)
        annotations = f'{digits}/annotations/instances_val2017.json'
        evaluators = cfg.test_evaluator
        for one in evaluators if isinstance(evaluators, list) else [evaluators]:
            if 'ann_file' in one:
                one.ann_file = annotations
        cfg.dump(path)
        model = randomized(build(cfg))
        checkpoint = tmp_path / f'{name}.pth'
        meta = dict(epoch=3, dataset_meta=dict(classes=NAMES))
        content = dict(meta=meta, state_dict=model.state_dict(), optimizer=dict(a=1))
        torch.save(content, checkpoint)
        return path, checkpoint, model

    return make


def build(cfg):
    return MODELS.build(ConfigDict(cfg.model))


def randomized(model):
    """Weights unlike the initial ones, and of a size that keeps the scores apart."""
    for name, p in model.named_parameters():
        if name.endswith('.alpha'):
            nn.init.uniform_(p, 0.5, 1.5)
        elif name.endswith('.bias'):
            nn.init.normal_(p, std=0.2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model.eval()


STOCK_ORDER = """
model = dict(
    backbone=dict(pre_activation=False),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),
)
"""


def image_of(digits):
    return str(sorted((digits / 'val2017').iterdir())[0])


def check_same(one, other):
    """The same detections, to the rounding of single precision."""
    assert len(one['scores']) > 0
    torch.testing.assert_close(other['labels'], one['labels'])
    torch.testing.assert_close(other['scores'], one['scores'], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other['bboxes'], one['bboxes'], rtol=1e-4, atol=1e-3)


def detect(config, checkpoint, image):
    model = init_detector(str(config), str(checkpoint), device='cpu')
    found = inference_detector(model, image).pred_instances
    return model, {key: found[key] for key in found.keys()}


def test_mmdetection_alone_loads_a_stock_network(
    program, detector, digits, run, tmp_path
):
    """In a process in which the package cannot be imported."""
    config, checkpoint, _ = detector(MASK_RCNN, changes=STOCK_ORDER)
    before = detect(config, checkpoint, image_of(digits))[1]
    out_config, out_checkpoint = program.convert(config, checkpoint, tmp_path / 'out')
    text = out_config.read_text()
    assert 'MMDetection alone loads it' in text.splitlines()[0]
    assert not re.search('PWS|pws_mmdet|EpochSeed|Divergence', text)
    names = str(out_config.with_suffix('')), image_of(digits), tmp_path / 'found.pth'
    run(sys.executable, '-c', LOAD_WITHOUT_PACKAGE, *names)
    after = torch.load(tmp_path / 'found.pth')
    check_same(before, after)
    assert (before['masks'] != after['masks']).float().mean() < 1e-4


def test_the_norm_layers_of_a_stock_backbone_only_add_beta(detector):
    config, _, model = detector(MASK_RCNN, changes=STOCK_ORDER)
    cfg, plain = fuse_detector(Config.fromfile(config), model.state_dict())
    assert cfg.model.backbone.type == 'mmdet.ResNet'
    assert cfg.model.neck.conv_cfg is None
    assert cfg.model.roi_head.mask_head.conv_cfg is None
    assert plain.backbone.norm_eval, 'or training would change what they compute'
    for name, conv in model.named_modules():
        if name.startswith('backbone') and isinstance(conv, ReparamConv2d):
            norm = name.replace('conv', 'bn').replace('downsample.0', 'downsample.1')
            norm = plain.get_submodule(norm)
            torch.testing.assert_close(norm.bias, conv.bias)
            assert not norm.bias.requires_grad
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
            assert not norm.running_mean.any()
            gain = (norm.running_var + norm.eps).rsqrt()
            torch.testing.assert_close(gain, torch.ones_like(gain), rtol=1e-6, atol=0)


GN = dict(type='GN', num_groups=2)
BN = dict(type='BN')
PWS = dict(type='PWS')
BACKBONES = {
    # what differs from configs/mini/ssd96_r18_pws_digits.py, and the resulting type
    'authors order': (dict(), 'PWSResNet'),
    'stem norm': (dict(pre_activation=False, stem_norm_cfg=GN), 'PWSResNet'),
    'stock order': (dict(pre_activation=False), 'mmdet.ResNet'),
    'plain stem': (
        dict(pre_activation=False, stem_conv_cfg=dict(type='BiasConv2d')),
        'mmdet.ResNet',
    ),
    'deep stem': (
        dict(pre_activation=False, deep_stem=True, avg_down=True),
        'mmdet.ResNet',
    ),
    'bottlenecks': (
        dict(pre_activation=False, depth=50, style='caffe'),
        'mmdet.ResNet',
    ),
    'groups': (
        dict(pre_activation=False, depth=50, groups=2, base_width=8),
        'mmdet.ResNeXt',
    ),
    'BN after PWS': (dict(pre_activation=False, norm_cfg=BN), 'mmdet.ResNet'),
    'GN after PWS': (dict(pre_activation=False, norm_cfg=GN), 'PWSResNet'),
    'BN, authors order': (dict(norm_cfg=BN), 'PWSResNet'),
    'WN': (dict(pre_activation=False, conv_cfg=dict(type='WN')), 'mmdet.ResNet'),
    'no beta': (
        dict(pre_activation=False, conv_cfg=dict(type='PWS', beta=False)),
        'mmdet.ResNet',
    ),
    'default': (dict(pre_activation=False, conv_cfg=...), 'mmdet.ResNet'),
}


@pytest.mark.parametrize('name', BACKBONES)
@torch.no_grad()
def test_backbones(name):
    changes, expected = BACKBONES[name]
    cfg = load_config('configs/mini/ssd96_r18_pws_digits.py')
    cfg.model.backbone.update(base_channels=8)
    for key, value in changes.items():
        cfg.model.backbone[key] = value  # update() would merge dicts
    if cfg.model.backbone.conv_cfg is ...:
        del cfg.model.backbone.conv_cfg  # PWSResNet has a default
    levels = [64, 128, 256] if cfg.model.backbone.depth == 50 else [16, 32, 64]
    cfg.model.neck.update(in_channels=levels, out_channels=[*levels, 64])
    cfg.model.bbox_head.in_channels = [*levels, 64]
    model = randomized(build(cfg))
    before = copy.deepcopy(cfg.to_dict())
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert cfg.to_dict() == before
    assert plain_cfg.model.backbone.type == expected
    # the backbone's convolutions get their bias from elsewhere only if they must
    has_norm = expected != 'PWSResNet' or name == 'BN, authors order'
    conv_cfg = plain_cfg.model.backbone.conv_cfg
    assert conv_cfg == (None if has_norm else dict(type='BiasConv2d'))
    assert plain_cfg.model.neck.conv_cfg is None
    # 50 layers answer to a change of 1e-7 in their input by as much
    tolerance = 1e-4 if cfg.model.backbone.depth == 50 else 1e-5
    check_same_network(model, plain, tolerance)
    rebuilt = build(plain_cfg).eval()
    rebuilt.load_state_dict(plain.state_dict())
    check_same_network(model, rebuilt, tolerance)


def check_same_network(model, plain, tolerance=1e-5):
    convs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert not any(isinstance(m, ReparamConv2d) for m in convs)
    x = torch.randn(1, 3, 96, 96)
    outputs = zip(flatten(model.eval()(x)), flatten(plain.eval()(x)), strict=True)
    for theirs, ours in outputs:
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= tolerance, error.item()


def flatten(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for part in outputs for t in flatten(part)]


@pytest.mark.parametrize(
    'name',
    [
        'mini/ssd96_vgg16_pws_digits',
        'mini/ssd96_vgg16_wn_digits',
        'retinanet_r50_fpn_pws_1x',
    ],
)
@torch.no_grad()
def test_configs(name):
    cfg = load_config(f'configs/{name}.py')
    if 'r50' in name:
        cfg.model.backbone.update(base_channels=8)
        cfg.model.neck.in_channels = [32, 64, 128, 256]
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    check_same_network(model, plain)
    text = plain_cfg.pretty_text
    assert not re.search(r"'(PWS|WN)'|PWSRunner|AlphaInit|EpochSeed|Divergence", text)
    assert not re.search('Pretrained|resnet50_pws_in1k', text)
    assert plain_cfg.custom_imports.imports == ['pws_mmdet']
    assert plain_cfg.default_scope == 'mmdet'
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer'):
        assert plain_cfg[key] == cfg[key], key
    for key in ('conv_cfg', 'head_conv_cfg', 'train_dataloader', 'optim_wrapper'):
        assert key not in plain_cfg


def test_a_predictor_of_one_alpha_and_beta_gets_all_its_biases():
    cfg = load_config(SSD)
    model = randomized(build(cfg))
    _, plain = fuse_detector(cfg, model.state_dict())
    for theirs, ours in zip(
        model.bbox_head.cls_convs, plain.bbox_head.cls_convs, strict=True
    ):
        assert theirs[0].bias.shape == (1,)
        assert torch.equal(ours[0].bias, theirs[0].bias.expand(len(ours[0].weight)))


def test_predictors_without_beta():
    """The plain ones have a bias in any case."""
    cfg = load_config(SSD)
    cfg.model.bbox_head.conv_cfg.beta = False
    model = randomized(build(cfg))
    check_same_network(model, fuse_detector(cfg, model.state_dict())[1])


def test_a_convolution_that_blocks_share_brings_its_bias_to_each_norm():
    """The levels of RetinaSepBNHead share convolutions, but not norm layers."""
    cfg = load_config('configs/retinanet_r50_fpn_pws_1x.py')
    cfg.model.backbone.update(base_channels=8)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = 8
    cfg.model.bbox_head.update(
        type='RetinaSepBNHead', num_ins=5, norm_cfg=BN, feat_channels=8
    )
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.model.bbox_head.conv_cfg is None
    first, second = (m[0] for m in plain.bbox_head.cls_convs[:2])
    assert first.conv is second.conv
    check_same_network(model, plain)


def test_blocks_without_norm_elsewhere():
    cfg = load_config(SSD)
    cfg.model.neck.norm_cfg = dict(type='NoNorm')
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert not any(isinstance(m, NoNorm) for m in plain.modules())
    assert plain_cfg.model.neck.conv_cfg is None
    check_same_network(model, plain)


def test_blocks_that_want_a_bias_of_their_own_keep_it():
    cfg = load_config(SSD)
    cfg.model.neck.norm_cfg = dict(type='NoNorm', bias=True)
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.model.backbone.conv_cfg is None
    assert plain_cfg.model.neck.conv_cfg == dict(type='BiasConv2d')
    check_same_network(model, plain)


@MODELS.register_module(force=True)
class VGGOfItsOwn(PWSVGG):
    """It takes no conv_cfg: no config can make its convolutions plain."""

    def __init__(self, **kwargs):
        super().__init__(conv_cfg=dict(type='PWS'), **kwargs)


def test_convolutions_that_no_config_names_are_an_error():
    cfg = load_config(SSD)
    cfg.model.backbone = dict(type='VGGOfItsOwn', width=0.25)
    model = build(cfg)
    message = r'not made from a conv_cfg.*: backbone\.stages\.0\.0\.conv, .*fuse_pws'
    with pytest.raises(RuntimeError, match=message):
        fuse_detector(cfg, model.state_dict())


def test_what_else_a_config_has():
    cfg = load_config(MASK_RCNN)
    cfg.model.backbone.pre_activation = False
    cfg.custom_imports.imports += ['numpy']
    cfg.custom_hooks += [dict(type='EMAHook'), dict(type='NumClassCheckHook')]
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='FMeasureMetric')]
    cfg.work_dir, cfg.load_from = 'work_dirs/mine', 'coco.pth'
    model = build(cfg)
    plain_cfg, _ = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.custom_imports.imports == ['numpy']
    assert [hook.type for hook in plain_cfg.custom_hooks] == ['NumClassCheckHook']
    assert [one.type for one in plain_cfg.test_evaluator] == ['CocoMetric']
    assert not {'work_dir', 'load_from', 'runner_type'} & set(plain_cfg)


@pytest.mark.parametrize('base, header', [(SSD, 'Needs pws_mmdet')], ids=['SSD'])
def test_inference(program, detector, digits, tmp_path, base, header):
    changes = 'model = dict(test_cfg=dict(score_thr=0.0, max_per_img=20))'
    config, checkpoint, model = detector(base, changes=changes)
    paths = program.convert(config, checkpoint, tmp_path / 'new/folder')
    assert paths == tuple(tmp_path / f'new/folder/mine.{end}' for end in ('py', 'pth'))
    assert paths[0].read_text().startswith(f'# {header}')
    image = image_of(digits)
    before = detect(config, checkpoint, image)[1]
    plain, after = detect(*paths, image)
    check_same(before, after)
    assert not any(isinstance(m, ReparamConv2d) for m in plain.modules())
    assert plain.dataset_meta['classes'] == NAMES
    content = torch.load(paths[1], weights_only=True)
    assert set(content) == {'state_dict', 'meta'}

    inferencer = DetInferencer(*map(str, paths), device='cpu', show_progress=False)
    found = inferencer(image, no_save_vis=True)['predictions'][0]
    torch.testing.assert_close(
        torch.tensor(found['scores']), before['scores'], rtol=1e-4, atol=1e-6
    )
    assert found['labels'] == before['labels'].tolist()
    assert inferencer.model.dataset_meta['classes'] == NAMES


def test_names_of_classes_are_the_configs_where_a_checkpoint_has_none(
    program, detector, tmp_path
):
    config, checkpoint, model = detector(SSD)
    # from a wrapped network, and with alpha as in the checkpoints of the authors
    weights = {
        f'module.{k}': v.reshape(-1, 1, 1, 1) if k.endswith('.alpha') else v
        for k, v in model.state_dict().items()
    }
    torch.save(weights, checkpoint)
    out = program.convert(config, checkpoint, tmp_path / 'out')[1]
    content = torch.load(out, weights_only=True)
    assert tuple(content['meta']['dataset_meta']['classes']) == NAMES


def test_pretrained_weights_of_the_config_are_not_read(program, detector, tmp_path):
    changes = """
model = dict(
    backbone=dict(init_cfg=dict(type='PWSPretrained', checkpoint='none.pth')),
    neck=dict(init_cfg=[dict(type='Pretrained', checkpoint='none.pth')]),
)
"""
    config, checkpoint, _ = detector(SSD, changes=changes)
    config, _ = program.convert(config, checkpoint, tmp_path / 'out')
    assert 'none.pth' not in config.read_text()
    build(Config.fromfile(config)).init_weights()


def test_main(program, detector, tmp_path, monkeypatch, capsys):
    config, checkpoint, _ = detector(SSD)
    (tmp_path / 'out').mkdir()  # an empty folder is none
    option = 'model.test_cfg.max_per_img=7'
    arguments = [str(config), str(checkpoint), str(tmp_path / 'out')]
    monkeypatch.setattr(
        sys, 'argv', ['fuse_pws.py', *arguments, '--cfg-options', option]
    )
    program.main()
    printed = capsys.readouterr().out
    files = sorted((tmp_path / 'out').iterdir())
    assert [f.name for f in files] == ['mine.pth', 'mine.py']
    assert all(str(path) in printed for path in files)
    assert Config.fromfile(files[1]).model.test_cfg.max_per_img == 7


def damaged(change):
    def write(path):
        content = torch.load(path, weights_only=True)
        change(content['state_dict'])
        torch.save(content, path)

    return write


def without(*names):
    return damaged(lambda weights: [weights.pop(name) for name in names])


STEM = 'backbone.stages.0.0.conv'
BAD_INPUT = {
    'no checkpoint': (lambda path: path.unlink(), 'There is no checkpoint'),
    'truncated': (
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        'not a readable checkpoint',
    ),
    'no weights': (
        lambda path: torch.save(dict(meta=dict(epoch=1)), path),
        'it holds no weights',
    ),
    'an optimizer': (
        lambda path: torch.save(dict(state_dict=dict(state=1)), path),
        'it holds no weights',
    ),
    'missing': (
        without(f'{STEM}.weight', f'{STEM}.bias'),
        f'mine.py: the weights do not fit the network: they lack '
        f'{STEM}.weight, {STEM}.bias',
    ),
    'alpha': (
        without(f'{STEM}.alpha'),
        f'mine.py: these are the weights of a network with other convolutions than '
        f'PWS in {STEM}',
    ),
    'unexpected': (
        damaged(lambda w: w.update({f'x.{i}': torch.ones(1) for i in range(9)})),
        'the network has no x.0, x.1, x.2 and 6 more',
    ),
    'size': (
        damaged(lambda w: w.update({f'{STEM}.bias': torch.ones(7)})),
        f'do not fit the network: size mismatch for {STEM}.bias',
    ),
    'NaN': (
        damaged(lambda w: w[f'{STEM}.weight'][0, 0, 0, 0].fill_(torch.nan)),
        f'NaN or infinity in {STEM}.weight',
    ),
    'infinite': (
        damaged(lambda w: w[f'{STEM}.alpha'][0].fill_(torch.inf)),
        f'NaN or infinity in {STEM}.alpha',
    ),
}


def run_main(program, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['fuse_pws.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_checkpoints(program, detector, tmp_path, monkeypatch, capsys, name):
    spoil, message = BAD_INPUT[name]
    config, checkpoint, _ = detector(SSD)
    spoil(checkpoint)
    before = sorted(tmp_path.iterdir())
    arguments = config, checkpoint, tmp_path / 'out'
    error = run_main(program, monkeypatch, capsys, *arguments)
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    'base', ['configs/mini/ssd96_vgg16_bn_digits.py', 'the result']
)
def test_nothing_to_make_plain(program, detector, tmp_path, monkeypatch, capsys, base):
    """A config of another network, and what the program has made already."""
    config, checkpoint, _ = detector(SSD if base == 'the result' else base)
    if base == 'the result':
        config, checkpoint = program.convert(config, checkpoint, tmp_path / 'plain')
    arguments = config, checkpoint, tmp_path / 'out'
    error = run_main(program, monkeypatch, capsys, *arguments)
    assert 'has no PWS (or WN) convolution' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_an_existing_out_dir_is_refused(program, tmp_path, monkeypatch, capsys, kind):
    out = tmp_path / 'out'
    mine = out / 'mine.txt' if kind == 'folder' else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('mine')
    # before the others are looked at
    error = run_main(program, monkeypatch, capsys, 'none.py', 'none.pth', out)
    assert 'out exists and is not an empty folder' in error
    assert mine.read_text() == 'mine'


@pytest.mark.parametrize('kind', ['dangling', 'a folder'])
def test_a_link_as_out_dir_is_refused(program, tmp_path, monkeypatch, capsys, kind):
    """A folder cannot take its place at the end."""
    if kind == 'a folder':
        (tmp_path / 'target').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'target')
    arguments = 'none.py', 'none.pth', tmp_path / 'out'
    error = run_main(program, monkeypatch, capsys, *arguments)
    assert 'out exists and is not an empty folder' in error


def test_an_out_dir_below_a_file_is_refused(program, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    arguments = 'none.py', 'none.pth', tmp_path / 'file/out'
    error = run_main(program, monkeypatch, capsys, *arguments)
    assert 'out cannot be written' in error and 'file is no folder' in error


def test_no_names_of_classes(program, detector, tmp_path, monkeypatch, capsys):
    config, checkpoint, model = detector(SSD)
    config.write_text(f'_base_ = {str(ROOT / SSD)!r}\ntest_dataloader = None\n')
    torch.save(model.state_dict(), checkpoint)
    error = run_main(program, monkeypatch, capsys, config, checkpoint, tmp_path / 'out')
    assert 'mine.pth does not name the classes' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('other', ['plain', 'BN'])
def test_weights_of_another_kind(
    program, detector, tmp_path, monkeypatch, capsys, other
):
    config, checkpoint, model = detector(SSD)
    if other == 'plain':
        weights = fuse_pws(model).state_dict()
    else:
        bn = load_config('configs/mini/ssd96_vgg16_bn_digits.py')
        weights = build(bn).state_dict()
    torch.save(weights, checkpoint)
    error = run_main(program, monkeypatch, capsys, config, checkpoint, tmp_path / 'out')
    kind = 'of plain convolutions' if other == 'plain' else 'with BN'
    assert f'these are the weights of a network {kind}' in error
    assert 'tools/model_converters/bn_to_pws.py converts them' in error


def test_a_missing_config(program, tmp_path, monkeypatch, capsys):
    arguments = tmp_path / 'none.py', tmp_path / 'none.pth', tmp_path / 'out'
    error = run_main(program, monkeypatch, capsys, *arguments)
    assert "No such file or directory: '" in error and 'none.py' in error


@pytest.mark.slow
@pytest.mark.parametrize('base', [MASK_RCNN, SSD], ids=['Mask R-CNN', 'SSD'])
def test_mmdetections_test_program(program, detector, digits, run, tmp_path, base):
    """It finds the same metrics, to the last digit that it prints."""
    stock = base == MASK_RCNN
    config, checkpoint, _ = detector(base, changes=STOCK_ORDER if stock else '')
    paths = program.convert(config, checkpoint, tmp_path / 'out')
    test = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    metrics = []
    for name, files in (('before', (config, checkpoint)), ('after', paths)):
        run(sys.executable, test, *files, '--work-dir', tmp_path / name)
        (path,) = (tmp_path / name).glob('*/*.json')
        metrics.append(json.loads(path.read_text()))
    times = {'time', 'data_time'}
    before, after = ({k: v for k, v in m.items() if k not in times} for m in metrics)
    assert before and before == after
