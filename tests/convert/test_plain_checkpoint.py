"""Tests of fuse_checkpoint: files that MMDetection loads."""

import functools
import json
import re
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from conftest import ROOT, load_config
from detectors import MASK_RCNN, NAMES, SSD, STOCK_ORDER, build, write_detector
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config

from pws_mmdet import fuse_pws
from pws_mmdet.convert import fuse_checkpoint
from pws_mmdet.layers import ReparamConv2d


@pytest.fixture
def detector(tmp_path, digits):
    return functools.partial(write_detector, tmp_path, digits)


# A module that is None cannot be imported. MMDetection imports mmpretrain if it is
# installed, which imports torchvision, which may be broken without pws_mmdet.
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


def image_of(digits):
    return str(sorted((digits / 'val2017').iterdir())[0])


def check_same(one, other):
    """Check that two results are the same, up to rounding errors of fp32."""
    assert len(one['scores']) > 0
    torch.testing.assert_close(other['labels'], one['labels'])
    torch.testing.assert_close(other['scores'], one['scores'], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other['bboxes'], one['bboxes'], rtol=1e-4, atol=1e-3)


def detect(config, checkpoint, image):
    model = init_detector(str(config), str(checkpoint), device='cpu')
    found = inference_detector(model, image).pred_instances
    return model, {key: found[key] for key in found.keys()}


@pytest.mark.slow
def test_mmdetection_alone_loads_a_stock_network(detector, digits, run, tmp_path):
    """It does so in a process that cannot import this package."""
    config, checkpoint, _ = detector(MASK_RCNN, changes=STOCK_ORDER)
    before = detect(config, checkpoint, image_of(digits))[1]
    out_config, out_checkpoint = fuse_checkpoint(config, checkpoint, tmp_path / 'out')
    text = out_config.read_text()
    assert 'MMDetection alone loads it' in text.splitlines()[0]
    assert not re.search('PWS|pws_mmdet|EpochSeed|Divergence', text)
    names = str(out_config.with_suffix('')), image_of(digits), tmp_path / 'found.pth'
    run(sys.executable, '-c', LOAD_WITHOUT_PACKAGE, *names)
    after = torch.load(tmp_path / 'found.pth')
    check_same(before, after)
    assert (before['masks'] != after['masks']).float().mean() < 1e-4


@pytest.mark.parametrize('base, header', [(SSD, 'Needs pws_mmdet')], ids=['SSD'])
def test_inference(detector, digits, tmp_path, base, header):
    changes = """
model = dict(
    backbone=dict(conv_cfg=dict(keep_mean=True)),
    test_cfg=dict(score_thr=0.0, max_per_img=20),
)
"""
    config, checkpoint, model = detector(base, changes=changes)
    paths = fuse_checkpoint(config, checkpoint, tmp_path / 'new/folder')
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


def test_without_classes_in_the_checkpoint_the_config_names_them(detector, tmp_path):
    config, checkpoint, model = detector(SSD)
    # Weights of a wrapped network, with alpha in the shape of the authors.
    weights = {
        f'module.{k}': v.reshape(-1, 1, 1, 1) if k.endswith('.alpha') else v
        for k, v in model.state_dict().items()
    }
    torch.save(weights, checkpoint)
    out = fuse_checkpoint(config, checkpoint, tmp_path / 'out')[1]
    content = torch.load(out, weights_only=True)
    assert tuple(content['meta']['dataset_meta']['classes']) == NAMES


def test_pretrained_weights_of_the_config_are_not_read(detector, tmp_path):
    changes = """
model = dict(
    backbone=dict(init_cfg=dict(type='PWSPretrained', checkpoint='none.pth')),
    neck=dict(init_cfg=[dict(type='Pretrained', checkpoint='none.pth')]),
)
"""
    config, checkpoint, _ = detector(SSD, changes=changes)
    config, _ = fuse_checkpoint(config, checkpoint, tmp_path / 'out')
    assert 'none.pth' not in config.read_text()
    build(Config.fromfile(config)).init_weights()


def refusal(*arguments):
    with pytest.raises((OSError, RuntimeError, ValueError)) as info:
        fuse_checkpoint(*arguments)
    return ' '.join(str(info.value).split())


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


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_checkpoints(detector, tmp_path, name):
    spoil, message = BAD_INPUT[name]
    config, checkpoint, _ = detector(SSD)
    spoil(checkpoint)
    before = sorted(tmp_path.iterdir())
    arguments = config, checkpoint, tmp_path / 'out'
    error = refusal(*arguments)
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    'base', ['configs/mini/ssd96_vgg16_bn_digits.py', 'the result']
)
def test_a_network_without_pws_is_refused(detector, tmp_path, base):
    """It is another network, or already the result of fuse_checkpoint."""
    config, checkpoint, _ = detector(SSD if base == 'the result' else base)
    if base == 'the result':
        config, checkpoint = fuse_checkpoint(config, checkpoint, tmp_path / 'plain')
    arguments = config, checkpoint, tmp_path / 'out'
    error = refusal(*arguments)
    assert 'has no PWS (or WN) convolution' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_an_existing_out_dir_is_refused(tmp_path, kind):
    out = tmp_path / 'out'
    mine = out / 'mine.txt' if kind == 'folder' else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('mine')
    # The folder is checked before the other arguments are read.
    error = refusal('none.py', 'none.pth', out)
    assert 'out exists and is not an empty folder' in error
    assert mine.read_text() == 'mine'


@pytest.mark.parametrize('kind', ['dangling', 'a folder'])
def test_a_link_as_out_dir_is_refused(tmp_path, kind):
    """A folder cannot be renamed to a link."""
    if kind == 'a folder':
        (tmp_path / 'target').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'target')
    arguments = 'none.py', 'none.pth', tmp_path / 'out'
    error = refusal(*arguments)
    assert 'out exists and is not an empty folder' in error


def test_an_out_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    arguments = 'none.py', 'none.pth', tmp_path / 'file/out'
    error = refusal(*arguments)
    assert 'out cannot be written' in error and 'file is no folder' in error


def test_without_any_names_of_classes_it_is_refused(detector, tmp_path):
    config, checkpoint, model = detector(SSD)
    config.write_text(f'_base_ = {str(ROOT / SSD)!r}\ntest_dataloader = None\n')
    torch.save(model.state_dict(), checkpoint)
    error = refusal(config, checkpoint, tmp_path / 'out')
    assert 'mine.pth does not name the classes' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('other', ['plain', 'BN'])
def test_weights_of_another_kind_are_refused(detector, tmp_path, other):
    config, checkpoint, model = detector(SSD)
    if other == 'plain':
        weights = fuse_pws(model).state_dict()
    else:
        bn = load_config('configs/mini/ssd96_vgg16_bn_digits.py')
        weights = build(bn).state_dict()
    torch.save(weights, checkpoint)
    error = refusal(config, checkpoint, tmp_path / 'out')
    kind = 'of plain convolutions' if other == 'plain' else 'with BN'
    assert f'these are the weights of a network {kind}' in error
    assert 'pws-convert converts them' in error


def test_a_missing_config(tmp_path):
    arguments = tmp_path / 'none.py', tmp_path / 'none.pth', tmp_path / 'out'
    error = refusal(*arguments)
    assert "No such file or directory: '" in error and 'none.py' in error


@pytest.mark.slow
@pytest.mark.parametrize('base', [MASK_RCNN, SSD], ids=['Mask R-CNN', 'SSD'])
def test_mmdetections_test_program_finds_the_same_metrics(
    detector, digits, run, tmp_path, base
):
    stock = base == MASK_RCNN
    config, checkpoint, _ = detector(base, changes=STOCK_ORDER if stock else '')
    paths = fuse_checkpoint(config, checkpoint, tmp_path / 'out')
    test = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    metrics = []
    for name, files in (('before', (config, checkpoint)), ('after', paths)):
        run(sys.executable, test, *files, '--work-dir', tmp_path / name)
        (path,) = (tmp_path / name).glob('*/*.json')
        metrics.append(json.loads(path.read_text()))
    times = {'time', 'data_time'}
    before, after = ({k: v for k, v in m.items() if k not in times} for m in metrics)
    assert before and before == after
