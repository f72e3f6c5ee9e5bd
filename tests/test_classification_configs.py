"""Every classification config builds, holds what it says, and trains a step."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, load_config
from digits.imagefolder import convert
from mmcv.transforms import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.checkpoint import read_checkpoint
from pws_mmdet.convert import publish_backbone
from pws_mmdet.layers import (
    AnySizeInstanceNorm2d,
    ScaledWSConv2d,
    SwitchableNorm2d,
    WNConv2d,
)

pytest.importorskip('mmpretrain', reason='the extra `pretrain` is not installed')

CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))[:-3]
    for pattern in ('cifar10/*.py', 'imagenet/*.py', 'mini/*.py')
    for path in (ROOT / 'configs').glob(pattern)
    if path.stem.startswith(('convpool', 'resnet'))
)
ROWS = ('normal', 'bn', 'gn', 'sn', 'wn', 'nf', 'pws')
TABLE_4 = [
    f'{folder}/{net}_{row}_{data}'
    for row in ROWS
    for folder, data, nets in (
        ('cifar10', 'cifar10', ('resnet56', 'convpool')),
        ('mini', 'digits', ('resnet20', 'convpool')),
    )
    for net in nets
]
TABLE_5 = [
    f'imagenet/resnet50_{row}_in1k' for row in ('bn', 'gn', 'ln', 'in', 'wn', 'pws')
]
# the classifier of the authors' repository
RESNET34 = [f'cifar10/resnet34_{row}_cifar10' for row in ('bn', 'gn', 'pws')]
NORMS = dict(bn=_BatchNorm, gn=nn.GroupNorm, ln=nn.GroupNorm, sn=SwitchableNorm2d)
NORMS['in'] = AnySizeInstanceNorm2d
CONVS = dict(wn=WNConv2d, nf=ScaledWSConv2d, pws=PWSConv2d)
NORMALIZING = (*NORMS.values(), nn.LayerNorm, nn.InstanceNorm2d)


def load(name):
    return load_config(f'configs/{name}.py')


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def names_of(model, *classes):
    return [name for name, m in model.named_modules() if isinstance(m, classes)]


def row_of(name):
    return name.split('_')[-2]


def test_all_rows_of_the_tables_are_there():
    assert set(CONFIGS) == {*TABLE_4, *TABLE_5, *RESNET34}


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_trains_a_step(name):
    from mmpretrain.structures import DataSample

    cfg = load(name)
    size = dict(cifar10=32, imagenet=64, mini=16)[name.split('/')[0]]
    model = build(cfg)
    model.init_weights()
    model.train()
    inputs = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    samples = [
        DataSample().set_gt_label(i) for i in (0, cfg.model.head.num_classes - 1)
    ]
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train_step(dict(inputs=list(inputs), data_samples=samples), wrapper)
    assert torch.isfinite(losses['loss']), losses
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split('.')[0] for n in changed} == {'backbone', 'head'}
    alphas = [n for n in before if n.endswith('.alpha')]
    assert bool(alphas) == (row_of(name) == 'pws') == bool(changed.intersection(alphas))


@pytest.mark.parametrize('name', CONFIGS)
def test_rows_differ_in_convolution_and_norm_alone(name):
    row = row_of(name)
    model = build(load(name))
    convs = names_of(model, nn.Conv2d)
    assert names_of(model, *CONVS.values()) == (convs if row in CONVS else [])
    assert names_of(model, CONVS.get(row, nn.Conv2d)) == convs
    norms = names_of(model, *NORMALIZING)
    if row in NORMS:
        assert norms == names_of(model, NORMS[row])
        assert len(norms) == len(convs)
    elif name in (*TABLE_5, *RESNET34):  # "LN to normalize the input and the output"
        assert norms == ['backbone.gn1', 'backbone.out_norm']
        groups = [model.get_submodule(norm).num_groups for norm in norms]
        assert groups == [1, 1]
    else:
        assert norms == []
        biases = [n for n, _ in model.named_parameters() if n.endswith('bias')]
        assert len(biases) == len(convs) + 1
    control = build(load(name.replace(f'_{row}_', '_bn_')))
    assert shapes(model) == shapes(control)


def shapes(model):
    return [m.weight.shape for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_groups_of_the_gn_rows():
    for name, expected in (
        ('cifar10/resnet56_gn_cifar10', 8),
        ('cifar10/convpool_gn_cifar10', 32),
        ('cifar10/resnet34_gn_cifar10', 32),
        ('imagenet/resnet50_gn_in1k', 32),
        ('imagenet/resnet50_ln_in1k', 1),
    ):
        model = build(load(name))
        norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {expected}, name
        # one channel to a group would be IN
        assert all(norm.num_channels >= 2 * expected for norm in norms), name


@pytest.mark.parametrize('name', CONFIGS)
def test_weight_decay(name):
    """alpha is exempt, nothing else; of NF all but the weights, as in its source."""
    cfg = load(name)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        id(p): group['weight_decay']
        for group in wrapper.param_groups
        for p in group['params']
    }
    weight_decay = cfg.optim_wrapper.optimizer.weight_decay
    assert weight_decay == (1e-4 if name in TABLE_5 else 5e-4)
    for parameter_name, p in model.named_parameters():
        is_exempt = parameter_name.endswith('.alpha')
        if row_of(name) == 'nf':
            is_exempt = p.dim() == 1
        assert decay[id(p)] == (0 if is_exempt else weight_decay), parameter_name


@pytest.mark.parametrize('name', CONFIGS)
def test_settings_of_the_paper(name):
    cfg = load(name)
    optimizer = cfg.optim_wrapper.optimizer
    (steps,) = cfg.param_scheduler
    assert (optimizer.type, optimizer.momentum) == ('SGD', 0.9)
    assert (steps.type, steps.gamma) == ('MultiStepLR', 0.1)
    epochs = cfg.train_cfg.max_epochs
    if name in TABLE_5:
        assert optimizer.lr == 0.025
        assert (epochs, steps.milestones) == (100, [30, 60, 90])
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
        assert cfg.auto_scale_lr.base_batch_size == 64
    else:
        assert optimizer.lr == 0.1
        last = [] if name in RESNET34 else [0.9]
        assert [m / epochs for m in steps.milestones] == [0.5, 0.75, *last]
        assert epochs == 200 or name.startswith('mini/')
        batch_size = cfg.train_dataloader.batch_size
        assert batch_size == cfg.auto_scale_lr.base_batch_size == 128
    assert not cfg.auto_scale_lr.enable
    if row_of(name) == 'pws':
        gamma = 1e-4 if name in TABLE_5 else 1e-3
        convs = (m for m in build(cfg).modules() if isinstance(m, PWSConv2d))
        assert {conv.gamma for conv in convs} == {gamma}
    if row_of(name) == 'wn':  # unlike the rows "WN (g = 1)" of the detectors
        assert cfg.model.backbone.conv_cfg.g == 'trained'


@pytest.mark.parametrize('name', CONFIGS)
def test_what_goes_with_the_training(name):
    cfg = load(name)
    assert cfg.runner_type == 'PWSRunner'  # which stops what diverges
    assert cfg.default_hooks.sampler_seed.type == 'EpochSeedHook'
    hooks = {hook.type: hook for hook in cfg.get('custom_hooks', [])}
    has_shortcuts = 'resnet' in name and row_of(name) == 'pws'
    has_shortcuts = has_shortcuts and name not in RESNET34  # alpha starts at 1
    assert ('PWSAlphaInitHook' in hooks) == has_shortcuts
    if name.startswith('mini/'):
        assert hooks['DivergenceHook'].interval == 1
        assert cfg.randomness.seed == 0
    assert cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval == 0
    assert cfg.train_cfg.max_epochs % cfg.default_hooks.checkpoint.interval == 0


def test_resnet34_is_the_one_of_the_authors():
    """Pre-activation, 64 to 512 channels, last BN of a block 0, no pooling."""
    for name in RESNET34:
        net = build(load(name)).backbone
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len([c for c in convs if c.kernel_size == (3, 3)]) == 33
        assert [convs[0].out_channels, convs[-1].out_channels] == [64, 512]
        assert net.pre_activation and isinstance(net.maxpool, nn.Identity)
        net.init_weights()
        lasts = [m.norm2 for m in net.modules() if hasattr(m, 'norm2')]
        assert len(lasts) == 16
        if row_of(name) != 'pws':
            assert not any(norm.weight.any() for norm in lasts)


def test_augmentation_of_cifar10():
    """Pad by 4, crop, flip: of white on black padding, at least 28x28 stay."""
    cfg = load('cifar10/resnet56_pws_cifar10')
    init_default_scope('mmpretrain')
    white = dict(img=np.full((32, 32, 3), 255, np.uint8), gt_label=3)
    train = Compose(cfg.train_dataloader.dataset.pipeline)
    images = [train(dict(white))['inputs'] for _ in range(30)]
    assert {tuple(image.shape) for image in images} == {(3, 32, 32)}
    sides = [int(image[0].any(0).sum()) for image in images]
    assert min(sides) >= 28 and len(set(sides)) > 1
    ramp = np.arange(32, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    slopes = {
        int(
            np.sign(
                np.diff(train(dict(img=ramp, gt_label=3))['inputs'][0, 16, 8:24].int())[
                    0
                ]
            )
        )
        for _ in range(30)
    }
    assert slopes == {-1, 1}
    test = Compose(cfg.test_dataloader.dataset.pipeline)
    assert (test(dict(white))['inputs'] == 255).all()


def test_images_of_imagenet(tmp_path):
    import cv2

    cfg = load('imagenet/resnet50_pws_in1k')
    init_default_scope('mmpretrain')
    path = tmp_path / 'image.jpg'
    cv2.imwrite(str(path), np.full((300, 400, 3), (255, 0, 0), np.uint8))  # blue
    preprocess = MODELS.build(
        dict(type='ClsDataPreprocessor', **cfg.model.data_preprocessor)
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        sample = Compose(loader.dataset.pipeline)(dict(img_path=str(path), gt_label=5))
        assert sample['inputs'].shape == (3, 224, 224)
        batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        red, _, blue = preprocess(batch)['inputs'][0].mean((1, 2))
        assert red < -2 and blue > 2


@pytest.fixture(scope='module')
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits_imagefolder'
    convert(folder)
    return folder


def test_images_of_digits(digits_folder):
    cfg = load('mini/resnet20_pws_digits')
    init_default_scope('mmpretrain')
    for loader, count in ((cfg.train_dataloader, 1297), (cfg.val_dataloader, 500)):
        dataset = DATASETS.build({**loader.dataset, 'data_root': str(digits_folder)})
        assert len(dataset) == count
        assert dataset.CLASSES == tuple('0123456789')
        assert dataset[0]['inputs'].shape == (3, 16, 16)
        labels = dataset.get_gt_labels()
        assert np.bincount(labels).min() > count / 11
    images = torch.stack([dataset[i]['inputs'] for i in range(count)]).float()
    statistics = cfg.model.data_preprocessor
    assert images.mean().item() == pytest.approx(statistics.mean[0], abs=5)
    assert images.std().item() == pytest.approx(statistics.std[0], abs=5)


def test_classifier_makes_the_backbone_of_mask_rcnn(tmp_path):
    """Its published weights are all that the detector's backbone has."""
    model = build(load('imagenet/resnet50_pws_in1k'))
    torch.save(model.state_dict(), tmp_path / 'classifier.pth')
    path = publish_backbone(tmp_path / 'classifier.pth', tmp_path / 'backbone.pth')
    published = read_checkpoint(path).weights
    init_default_scope('mmdet')
    cfg = load_config('configs/mask_rcnn_r50_fpn_pws_1x.py')
    assert cfg.model.backbone.init_cfg.checkpoint == 'checkpoints/resnet50_pws_in1k.pth'
    cfg.model.backbone.init_cfg = None
    backbone = MODELS.build(cfg.model.backbone)
    backbone.load_state_dict(published, strict=True)
    assert (
        cfg.model.backbone.conv_cfg
        == load('imagenet/resnet50_pws_in1k').model.backbone.conv_cfg
    )


def test_programs_of_mmdetection_train_and_test_it(run, root, digits_folder, tmp_path):
    config = root / 'configs/mini/resnet20_pws_digits.py'
    options = [
        *(
            f'{loader}_dataloader.dataset.data_root={digits_folder}'
            for loader in ('train', 'val', 'test')
        ),
        'train_dataloader.dataset.indices=256',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
    ]
    log = run(
        sys.executable, root / 'tools/train.py', config, '--cfg-options', *options
    ).stdout
    assert 'Epoch(train) [1][2/2]' in log
    trained = log.rsplit('accuracy/top1: ', 1)[1].split()[0]
    checkpoint = tmp_path / 'work_dirs/resnet20_pws_digits/epoch_1.pth'
    log = run(
        *(sys.executable, root / 'tools/test.py', config, checkpoint),
        *('--cfg-options', *options),
    ).stdout
    assert log.rsplit('accuracy/top1: ', 1)[1].split()[0] == trained
