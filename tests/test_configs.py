"""Every config builds, has the documented settings, and trains a step."""

import copy
import re

import pytest
import torch
from conftest import ROOT, load_config
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import SwitchableNorm2d, WNConv2d

CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / 'configs').rglob('*.py')
    if path.parent.name != '_base_'
    and not path.stem.startswith(('convpool', 'resnet'))  # classifiers
)
NORMALIZING = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
HEADLINES = """
mask_rcnn_r50_fpn_pws_1x mask_rcnn_r50_fpn_bn_1x mask_rcnn_r50_fpn_gn_1x
mask_rcnn_r50_fpn_4conv_pws_1x mask_rcnn_r50_fpn_4conv_gn_1x
ssd320_vgg16_pws_1x ssd320_vgg16_bn_1x ssd320_vgg16_pws_2x ssd320_vgg16_bn_2x
""".split()
VOC_VGG = [
    f'voc/ssd320_vgg16_{norm}_voc'
    for norm in ('pws', 'bn', 'gn', 'in', 'sn', 'wn', 'normal')
]
VOC_R50 = ['voc/ssd320_r50_pws_voc', 'voc/ssd320_r50_bn_voc']
VOC = VOC_VGG + VOC_R50
STARTING_POINTS = [
    'faster_rcnn_r50_fpn_pws_1x',
    'mask_rcnn_r50_fpn_pws_from_bn_1x',
    'retinanet_r50_fpn_pws_1x',
]


def build(cfg):
    cfg = copy.deepcopy(cfg.model)
    cfg.backbone.init_cfg = None  # there are no weights in the tests
    return MODELS.build(cfg)


def model_of(name):
    return build(load_config(f'configs/{name}.py'))


def names_of(model, *classes):
    return [name for name, m in model.named_modules() if isinstance(m, classes)]


def test_all_headlines_are_there():
    names = HEADLINES + VOC + STARTING_POINTS
    assert {f'configs/{name}.py' for name in names} <= set(CONFIGS)


def halve(cfg):
    """Halve the channels of an SSD, so that a step takes a quarter of the time."""
    halves = tuple(c // 2 for c in cfg.model.neck.out_channels)
    cfg.model.neck.in_channels = halves[: len(cfg.model.neck.in_channels)]
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = halves
    if 'r50' in cfg.filename:
        cfg.model.backbone.base_channels = 32
    else:
        cfg.model.backbone.width = 0.5
    return cfg


def half_model_of(name):
    return build(halve(load_config(f'configs/{name}.py')))


def num_classes(cfg):
    heads = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    return heads.num_classes


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_trains_a_step(name):
    cfg = load_config(name)
    assert cfg.custom_imports.imports == ['pws_mmdet']
    assert cfg.auto_scale_lr.base_batch_size > 0 and not cfg.auto_scale_lr.enable
    size = 320 if 'ssd320' in name else 96
    if size == 320 and name != 'configs/voc/ssd320_vgg16_pws_voc.py':
        halve(cfg)
    if 'rcnn' in name:  # fewer regions, to save time
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.train_cfg.rcnn.sampler.num = 16
    model = build(cfg)
    model.init_weights()
    model.train()
    inputs = demo_mm_inputs(
        2,
        [[3, size, size]] * 2,
        num_items=[2, 0],  # one image without ground truth
        num_classes=num_classes(cfg),
        with_mask='mask' in name,
    )
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train_step(inputs, wrapper)
    assert all(torch.isfinite(v).all() for v in losses.values()), losses
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed <= trained
    for part in {n.split('.')[0] for n in trained}:
        assert any(n.startswith(part) for n in changed), part
    alphas = {n for n in trained if n.endswith('.alpha')}
    assert bool(alphas) == ('pws' in name) == bool(alphas & changed)


@pytest.mark.parametrize('name', [n for n in CONFIGS if 'pws' in n])
def test_norm_free(name):
    model = build(load_config(name))
    norms = names_of(model, *NORMALIZING)
    has_stem_norm = '_r50_' in name and not re.search('ssd|from_bn', name)
    assert norms == (['backbone.gn1'] if has_stem_norm else [])
    if norms:
        assert model.backbone.gn1.num_groups == 1


@pytest.mark.parametrize('name', [n for n in CONFIGS if 'pws' in n])
def test_alpha_is_not_decayed(name):
    cfg = load_config(name)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    weight_decay = cfg.optim_wrapper.optimizer.weight_decay
    decay = {
        id(p): group['weight_decay']
        for group in wrapper.param_groups
        for p in group['params']
    }
    alphas = 0
    for parameter_name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_alpha = parameter_name.endswith('.alpha')
        alphas += is_alpha
        assert decay[id(p)] == (0 if is_alpha else weight_decay), parameter_name
    frozen = [c for c in model.modules() if isinstance(c, PWSConv2d)]
    assert alphas == sum(c.alpha.requires_grad for c in frozen) > 0


def test_where_pws_is_in_mask_rcnn():
    """PWS is in backbone, FPN, box and mask head; not in RPN, deconv, logits, fc."""
    for name, box_convs in (('pws_1x', 0), ('4conv_pws_1x', 4)):
        model = model_of(f'mask_rcnn_r50_fpn_{name}')
        pws = names_of(model, PWSConv2d)
        plain = [n for n in names_of(model, nn.Conv2d) if n not in pws]
        count = {
            part: sum(n.startswith(part) for n in pws)
            for part in ('backbone', 'neck', 'roi_head.bbox_head', 'roi_head.mask_head')
        }
        assert list(count.values()) == [53, 8, box_convs, 4]
        assert all(
            n.startswith(('rpn_head', 'roi_head.mask_head.conv_log')) for n in plain
        )
        gammas = {c.gamma for c in model.backbone.modules() if isinstance(c, PWSConv2d)}
        assert gammas == {1e-4}
        conv = model.neck.fpn_convs[0].conv
        assert conv.gamma == pytest.approx(0.1 * 2 / (9 * 256))
        assert not any(p.requires_grad for p in model.backbone.layer1.parameters())
        assert all(p.requires_grad for p in model.backbone.layer2.parameters())


def test_where_pws_is_in_the_starting_points():
    """PWS is in backbone, FPN and head, with Mask R-CNN's gamma; not in predictors."""
    for name, predictors in (
        ('faster_rcnn', ['rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg']),
        ('retinanet', ['bbox_head.retina_cls', 'bbox_head.retina_reg']),
    ):
        cfg = load_config(f'configs/{name}_r50_fpn_pws_1x.py')
        model = build(cfg)
        convs = {
            n: m
            for n, m in model.named_modules()
            if isinstance(m, nn.Conv2d) and n not in predictors
        }
        assert names_of(model, PWSConv2d) == list(convs)
        assert all(p in dict(model.named_modules()) for p in predictors)
        backbone = {c.gamma for n, c in convs.items() if n.startswith('backbone')}
        assert backbone == {1e-4}
        for conv_name, conv in convs.items():
            if not conv_name.startswith('backbone'):
                n = conv.weight[0].numel()
                assert conv.gamma == pytest.approx(0.1 * 2 / n), conv_name
        mask_rcnn = load_config('configs/mask_rcnn_r50_fpn_pws_1x.py')
        assert cfg.model.backbone == mask_rcnn.model.backbone
        assert cfg.custom_hooks == mask_rcnn.custom_hooks
        assert schedule(cfg) == schedule(mask_rcnn)
        assert cfg.optim_wrapper.optimizer.lr == (0.01 if name == 'retinanet' else 0.02)


def test_ssd_is_pws_everywhere_with_the_papers_anchors():
    cfg = load_config('configs/ssd320_vgg16_pws_1x.py')
    model = build(cfg)
    assert names_of(model, nn.Conv2d) == names_of(model, PWSConv2d)
    assert {c.gamma for c in model.modules() if isinstance(c, PWSConv2d)} == {1e-3}
    model.eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 320, 320))
    assert [m.shape[-1] for m in maps] == [40, 20, 10, 5, 3]
    generator = TASK_UTILS.build(cfg.model.bbox_head.anchor_generator)
    assert generator.num_base_priors == [9] * 5
    # The anchors of ratio 1 are 4 * stride * 2^(0, 1/3, 2/3).
    square = generator.base_anchors[0][3:6]
    sides = square[:, 2] - square[:, 0]
    expected = torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])
    torch.testing.assert_close(sides, expected)
    assert 'custom_hooks' not in cfg or not any(
        hook.type == 'PWSAlphaInitHook' for hook in cfg.custom_hooks
    )


def schedule(cfg):
    steps = [s for s in cfg.param_scheduler if s.type == 'MultiStepLR']
    return cfg.train_cfg.max_epochs, steps[0].milestones, steps[0].gamma


@pytest.mark.parametrize('name', HEADLINES)
def test_settings_of_the_paper(name):
    cfg = load_config(f'configs/{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum) == ('SGD', 0.9)
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.dataset.type == 'CocoDataset', 'no repeated data set'
    if name.startswith('ssd'):
        assert (optimizer.lr, optimizer.weight_decay) == (1e-2, 5e-4)
        assert cfg.train_dataloader.batch_size == 16
        assert len(cfg.param_scheduler) == 1, 'no warm-up'
        expected = (80, [30, 50, 70]) if '1x' in name else (150, [60, 100, 140])
    else:
        assert (optimizer.lr, optimizer.weight_decay) == (0.02, 1e-4)
        assert cfg.train_dataloader.batch_size == 2
        warm_up = cfg.param_scheduler[0]
        assert (warm_up.type, warm_up.start_factor, warm_up.end) == (
            'LinearLR',
            0.001,
            500,
        )
        expected = (12, [8, 11])
    assert schedule(cfg) == (*expected, 0.1)
    hooks = [hook.type for hook in cfg.get('custom_hooks', [])]
    assert ('PWSAlphaInitHook' in hooks) == ('mask_rcnn' in name and 'pws' in name)


@pytest.mark.parametrize('name', VOC)
def test_settings_of_the_paper_on_voc(name):
    cfg = load_config(f'configs/{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('SGD', 1e-2)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert schedule(cfg) == (240, [90, 170], 0.1)
    assert len(cfg.param_scheduler) == 1, 'no warm-up'
    assert not cfg.auto_scale_lr.enable, 'the same learning rate for all batches'
    loader = cfg.train_dataloader
    assert loader.batch_size == 16
    # With batches of 2, BN would get a last batch of one image: one value at 1x1.
    assert loader.drop_last
    assert loader.dataset.type == 'ConcatDataset', 'no repeated data set'
    for dataset, year in zip(loader.dataset.datasets, (2007, 2012), strict=True):
        assert dataset.type == 'VOCDataset'
        assert dataset.ann_file == f'VOC{year}/ImageSets/Main/trainval.txt'
        assert dataset.data_prefix.sub_data_root == f'VOC{year}/'
        transforms = [transform.type for transform in dataset.pipeline]
        distortion = ['PhotoMetricDistortion', 'Expand', 'MinIoURandomCrop']
        assert transforms[2:5] == distortion
        assert dataset.pipeline[5].scale == (320, 320)
    for split in ('val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
        voc_metric, f_measure = cfg[f'{split}_evaluator']
        assert (voc_metric.type, voc_metric.eval_mode) == ('VOCMetric', '11points')
        assert f_measure.type == 'FMeasureMetric'
    assert cfg.train_cfg.val_interval == 10
    assert cfg.runner_type == 'PWSRunner'  # it stops a training that diverges
    hooks = [hook.type for hook in cfg.get('custom_hooks', [])]
    assert ('PWSAlphaInitHook' in hooks) == ('r50_pws' in name)
    test_cfg = cfg.model.test_cfg
    assert (test_cfg.nms.iou_threshold, test_cfg.max_per_img) == (0.45, 200)
    assigner = cfg.model.train_cfg.assigner
    assert (assigner.pos_iou_thr, assigner.neg_iou_thr) == (0.5, 0.4)


@pytest.mark.parametrize('name', ['voc/ssd320_vgg16_bn_voc', 'voc/ssd320_r50_bn_voc'])
def test_levels_and_anchors_on_voc(name):
    cfg = load_config(f'configs/{name}.py')
    model = build(cfg).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 320, 320))
    assert [m.shape[2:] for m in maps] == [(n, n) for n in (40, 20, 10, 5, 3, 1)]
    first = [512, 1024, 512] if 'vgg' in name else [512, 1024, 2048]
    assert [m.shape[1] for m in maps] == [*first, 256, 256, 256]
    extra = [
        (m.in_channels, m.out_channels, m.stride[0], m.padding[0])
        for m in model.neck.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    expected = [(256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)]
    assert extra == expected[-len(extra) :]

    generator = TASK_UTILS.build(cfg.model.bbox_head.anchor_generator)
    levels = generator.grid_priors([m.shape[2:] for m in maps], device='cpu')
    edges = [32, 64, 118.4, 172.8, 227.2, 281.6, 336]
    for level, (low, high, stride) in enumerate(
        zip(edges, edges[1:], (8, 16, 32, 64, 107, 320), strict=False)
    ):
        ratios = [2] if level in (0, 4, 5) else [2, 3]
        sides = {(low, low), ((low * high) ** 0.5,) * 2}
        for ratio in ratios:
            wide, narrow = low * ratio**0.5, low / ratio**0.5
            sides |= {(wide, narrow), (narrow, wide)}
        priors = levels[level][: len(sides)]
        found = priors[:, 2:] - priors[:, :2]
        torch.testing.assert_close(
            torch.tensor(sorted(found.tolist())), torch.tensor(sorted(sides))
        )
        centers = (priors[:, 2:] + priors[:, :2]) / 2
        torch.testing.assert_close(centers, torch.full_like(centers, stride / 2))
        assert len(levels[level]) == len(sides) * maps[level].shape[2:].numel()


def test_pws_on_voc():
    """PWS is everywhere, in the predictors, too, with the gamma of the paper."""
    for name in ('vgg16', 'r50'):
        model = half_model_of(f'voc/ssd320_{name}_pws_voc')
        assert names_of(model, nn.Conv2d) == names_of(model, PWSConv2d)
        assert {c.gamma for c in model.modules() if isinstance(c, PWSConv2d)} == {1e-3}


def test_rows_on_voc_differ_in_the_norm_alone():
    def convolutions(name):
        return {
            n: (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding)
            for n, m in models[name].named_modules()
            if isinstance(m, nn.Conv2d)
        }

    for names in (VOC_VGG, VOC_R50):
        models = {name: half_model_of(name) for name in names}
        for name in names:
            assert convolutions(name) == convolutions(names[0]), name
            config = load_config(f'configs/{name}.py').to_dict()
            first = load_config(f'configs/{names[0]}.py').to_dict()
            for cfg in (config, first):
                for part in ('conv_cfg', 'norm_cfg'):
                    for owner in ('backbone', 'neck', 'bbox_head'):
                        cfg['model'][owner].pop(part, None)
                    cfg.pop(part, None)
                cfg['optim_wrapper'].pop('constructor', None)
                cfg.pop('custom_hooks', None)
            assert config == first, name

    kinds = dict(
        bn=_BatchNorm,
        gn=nn.GroupNorm,
        sn=SwitchableNorm2d,
        wn=WNConv2d,
        normal=(),
        **{'in': nn.InstanceNorm2d},
    )
    for kind, cls in kinds.items():
        model = half_model_of(f'voc/ssd320_vgg16_{kind}_voc')
        extra_convs = names_of(model.neck, nn.Conv2d)
        normalized = names_of(model.backbone, nn.Conv2d) + extra_convs
        found = names_of(model, *NORMALIZING, SwitchableNorm2d, WNConv2d)
        assert len(found) == (len(normalized) if cls else 0), kind
        assert found == (names_of(model, cls) if cls else [])
        assert not any(n.startswith('bbox_head') for n in found)
        biased = all(
            m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)
        )
        assert biased == (kind in ('wn', 'normal')), kind


def test_controls_differ_in_the_norm_alone():
    def parameters(name, *without):
        return {
            n: tuple(p.shape)
            for n, p in model_of(name).named_parameters()
            if not n.endswith(('bias', 'alpha')) and not any(w in n for w in without)
        }

    assert parameters('ssd320_vgg16_pws_1x') == parameters('ssd320_vgg16_bn_1x', 'bn')
    pws = parameters('mask_rcnn_r50_fpn_pws_1x', 'gn1')
    bn = parameters('mask_rcnn_r50_fpn_bn_1x', 'bn', 'downsample.1')
    assert pws == bn


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120


def test_the_readmes_config_has_no_norm_layers(tmp_path):
    text = (ROOT / 'README.md').read_text().split('```diff\n')[1].split('```')[0]
    path = tmp_path / 'mask_rcnn.py'
    path.write_text(''.join(line[1:] for line in text.splitlines(keepends=True)))
    cfg = Config.fromfile(path)
    model = build(cfg)
    assert not names_of(model, *NORMALIZING)
    assert len(names_of(model.backbone, PWSConv2d)) == 53
    assert len(names_of(model.neck, PWSConv2d)) == 8
    assert len(names_of(model.roi_head.mask_head, PWSConv2d)) == 4
    assert cfg.optim_wrapper.constructor == 'PWSOptimWrapperConstructor'
