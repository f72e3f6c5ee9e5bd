"""Every control differs from its PWS config in the norm alone.

The same data and schedule, the same convolutions, and the same variance of the filters
at the start. The exceptions are named, with their reasons.
"""

import functools
import re

import pytest
import torch
from conftest import ROOT, load_config
from mmengine.config import Config
from mmengine.registry import MODELS
from test_configs import halve
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import ScaledWSConv2d, WNConv2d

KINDS = ('bn', 'gn', 'in', 'ln', 'nf', 'sn', 'wn', 'normal')
PAIRS = [
    (str(path.relative_to(ROOT)), str(control.relative_to(ROOT)))
    for path in sorted((ROOT / 'configs').rglob('*_pws_*.py'))
    for kind in KINDS
    if (control := path.with_name(path.name.replace('_pws_', f'_{kind}_'))).is_file()
]
# Settings of the norm or of PWS, whose alpha has no weight decay and starts from data.
OF_THE_NORM = r"""
    (.+\.)?(conv_cfg|norm_cfg)(\..+)? | head_conv_cfg(\..+)? |
    optim_wrapper\.(constructor|paramwise_cfg(\..+)?)
"""
# Other differences that are allowed, by a part of the control's name.
EXCEPTIONS = {
    # Each backbone starts from ImageNet weights of its own kind. It has the structure,
    # and the mean and deviation of pixels, that these were trained with.
    r'configs/mask_rcnn_r50': r'model\.(backbone|data_preprocessor)\..+',
    # NF is a network and an optimizer as well.
    r'_nf_': r'model\.backbone\.(type | skip_init) | optim_wrapper\.(type | agc\..+)',
    # BN, GN and so on have MMDetection's blocks, PWS has the authors'. These have LN
    # after the stem and before the pooling, in the networks of WN and of PWS. So does
    # the ResNet-34, with the authors' blocks in all rows.
    r'imagenet/|resnet34': r"""
        ln(\..+)? | model\.backbone\.(pre_activation | (stem|out)_norm_cfg(\..+)?)
    """,
}
# Convolutions that may start with another variance, by a part of their names.
OTHER_STARTS = {
    # The backbone is pretrained.
    r'configs/mask_rcnn_r50.*backbone\.': 'pretrained',
    # The control is MMDetection's own network and has its initialization. With PWS,
    # PWSAlphaInitHook sets the scale of these layers.
    r'configs/mask_rcnn_r50.*neck\.': 'MMDetection',
}


def config_of(name):
    if re.search('(convpool|resnet)[^/]*$', name):
        # The custom_imports are skipped: they need mmpretrain, and this test does not.
        return Config.fromfile(ROOT / name, import_custom_modules=False)
    return load_config(name)


def model_of(cfg):
    """The model of a config; of a classifier only the backbone, without mmpretrain."""
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg = None  # there is no checkpoint in the tests
    classifier = cfg.model.type == 'ImageClassifier'
    return MODELS.build(cfg.model.backbone if classifier else cfg.model)


def layers_of(model):
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


@functools.cache
def shapes_of(name):
    with torch.device('meta'):
        layers = layers_of(model_of(config_of(name)))
    return {
        n: (m.weight.shape, getattr(m, 'stride', 1), getattr(m, 'padding', 0))
        for n, m in layers.items()
    }


@functools.cache
def starting_layers_of(name):
    """The layers with their initial weights. Large networks are made narrower."""
    cfg = config_of(name)
    if 'ssd320' in name:
        halve(cfg)
    elif 'r50' in name or 'resnet50' in name:
        cfg.model.backbone.base_channels = 32
        if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
            cfg.model.neck.in_channels = [128, 256, 512, 1024]
    elif 'resnet34' in name:
        cfg.model.backbone.base_channels = 32
    model = model_of(cfg)
    model.init_weights()
    return layers_of(model)


def flat(value, name=''):
    """Yield the dotted names of a config and their values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f'{name}.{key}' if name else key)
    else:
        yield name, value


def settings_of(name):
    cfg = config_of(name).to_dict()
    hooks = [h for h in cfg.get('custom_hooks', []) if 'AlphaInit' not in h['type']]
    return dict(flat({**cfg, 'custom_hooks': hooks}))


def test_all_rows_have_pairs():
    assert len(PAIRS) >= 40
    names = {name for pair in PAIRS for name in pair}
    for path in (ROOT / 'configs').rglob('*.py'):
        if re.search(f'_({"|".join(KINDS)})_', path.name) and '_pws_' not in path.name:
            assert str(path.relative_to(ROOT)) in names, path


@pytest.mark.parametrize('pws, control', PAIRS)
def test_settings_differ_in_the_norm_alone(pws, control):
    allowed = [OF_THE_NORM]
    allowed += [rest for part, rest in EXCEPTIONS.items() if re.search(part, control)]
    ours, theirs = settings_of(pws), settings_of(control)
    for name in sorted(ours.keys() | theirs.keys()):
        if not any(re.fullmatch(p, name, re.VERBOSE) for p in allowed):
            assert ours.get(name) == theirs.get(name), name


@pytest.mark.parametrize('pws, control', PAIRS)
def test_convolutions_are_the_same(pws, control):
    assert shapes_of(pws) == shapes_of(control)


@pytest.mark.parametrize('pws, control', PAIRS)
def test_filters_start_with_the_same_variance(pws, control):
    ours, theirs = starting_layers_of(pws), starting_layers_of(control)
    compared = 0
    for name, layer in theirs.items():
        if any(re.search(part, f'{control} {name}') for part in OTHER_STARTS):
            continue
        compared += 1
        ratio, ours_ratio = relative_variance(layer), relative_variance(ours[name])
        # Six standard deviations of the estimated variance
        tolerance = 6 * (2 / layer.weight.numel()) ** 0.5
        if isinstance(layer, WNConv2d):
            # In the paper WN starts as in Salimans & Kingma: weights N(0, 0.05^2). Its
            # filters have the norm g = 1, which is half of He's variance.
            std = layer.weight.std().item()
            assert std == pytest.approx(0.05, rel=tolerance), name
            assert ratio == pytest.approx(0.5, rel=tolerance), name
        elif isinstance(layer, ScaledWSConv2d):
            # n Var[W] is the square of the gain: it keeps a variance of 1, not of 2.
            gain = layer.activation_gain
            unbiased = 1 / layer.weight.numel()
            assert ratio == pytest.approx(gain**2 / 2, rel=1e-3 + unbiased), name
        else:
            assert ratio == pytest.approx(ours_ratio, rel=2 * tolerance), name
            if isinstance(ours[name], PWSConv2d):
                assert ratio == pytest.approx(1, rel=tolerance), name
    assert compared > 5


def relative_variance(layer):
    """n Var[W] / 2 of a layer's filters. It is 1 for He's initialization."""
    is_compared = isinstance(layer, (WNConv2d, ScaledWSConv2d))
    filters = (layer.effective_weight() if is_compared else layer.weight).detach()
    return (filters.var() * filters[0].numel() / 2).item()
