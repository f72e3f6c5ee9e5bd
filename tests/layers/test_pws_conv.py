import copy
import functools
import inspect
import io
import math
import pickle
import subprocess
import sys
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FLOAT16
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn

from pws_mmdet import PWSConv2d, standardize_weight
from pws_mmdet.layers import WNConv2d


def randomize(conv):
    """Set parameters to values at which each of them matters."""
    with torch.no_grad():
        for p in conv.state_dict().values():  # with the mean, a buffer
            p.copy_(torch.randn_like(p) + 0.5)
    return conv


def reference(conv, x):
    """Y_o = X * (alpha_o W_o + mean_o) + beta_o, without the layer's forward."""
    w = conv.weight.double()
    n = w[0].numel()
    mean = w.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((w - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    w = (w - mean) / (variance + conv.gamma).sqrt()
    if conv.scale:
        w = w * math.sqrt(2 / n)
    if conv.alpha is not None:
        w = w * conv.alpha.double().view(-1, 1, 1, 1)
    if conv.mean is not None:
        w = w + conv.mean.double().view(-1, 1, 1, 1)
    padding_mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    pad = (conv.padding[1],) * 2 + (conv.padding[0],) * 2
    x = F.pad(x.double(), pad, mode=padding_mode)
    y = F.conv2d(x, w, None, conv.stride, 0, conv.dilation, conv.groups)
    if conv.bias is not None:
        y = y + conv.bias.double().view(-1, 1, 1)
    return y


@given(
    groups=st.sampled_from([1, 2, 3]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    padding_mode=st.sampled_from(['zeros', 'reflect', 'replicate', 'circular']),
    alpha=st.sampled_from(['channel', 'layer', 'fixed']),
    beta=st.booleans(),
    scale=st.booleans(),
    relative_gamma=st.booleans(),
    keep_mean=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_forward(groups, channels, kernel_size, **kwargs):
    if math.prod(kernel_size) * channels[0] < 2:
        return
    conv = PWSConv2d(
        channels[0] * groups,
        channels[1] * groups,
        kernel_size,
        groups=groups,
        gamma=0.1,
        dtype=torch.float64,
        **kwargs,
    )
    randomize(conv)
    x = torch.randn(2, channels[0] * groups, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x), reference(conv, x))


def test_is_a_conv2d_in_every_respect():
    conv = PWSConv2d(4, 6, 3, stride=2, padding=1, groups=2)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert isinstance(conv, nn.Conv2d)
    for name in plain.__constants__:
        assert getattr(conv, name) == getattr(plain, name)
    assert conv.weight.shape == plain.weight.shape
    assert conv.bias.shape == plain.bias.shape
    x = torch.randn(2, 4, 7, 7)
    assert conv(x).shape == plain(x).shape
    assert conv(x[0]).shape == plain(x[0]).shape  # without a batch axis
    same = PWSConv2d(4, 6, 3, padding='same')
    assert same(x).shape == (2, 6, 7, 7)


def test_flop_counters_see_a_convolution():
    from mmengine.analysis import FlopAnalyzer

    x = torch.randn(1, 4, 8, 8)
    flops = [
        FlopAnalyzer(conv, x).unsupported_ops_warnings(False).by_operator()['conv']
        for conv in (PWSConv2d(4, 6, 3), nn.Conv2d(4, 6, 3))
    ]
    assert flops[0] == flops[1] > 0


def test_initialization():
    torch.manual_seed(0)
    conv = PWSConv2d(32, 64, 3, groups=2)
    n = 16 * 9
    assert conv.weight.var().item() == pytest.approx(2 / n, rel=0.05)
    assert conv.weight.mean().abs() < 1e-2
    assert torch.equal(conv.alpha, torch.ones(64))
    assert torch.equal(conv.bias, torch.zeros(64))


def test_state_dict_keys():
    assert list(PWSConv2d(4, 6, 3).state_dict()) == ['weight', 'bias', 'alpha']
    fixed = PWSConv2d(4, 6, 3, alpha='fixed', beta=False)
    assert list(fixed.state_dict()) == ['weight']
    assert fixed.alpha is None and fixed.bias is None
    layer = PWSConv2d(4, 6, 3, alpha='layer')
    assert layer.alpha.shape == layer.bias.shape == (1,)
    kept = PWSConv2d(4, 6, 3, keep_mean=True)
    assert list(kept.state_dict()) == ['weight', 'bias', 'alpha', 'mean']
    assert 'mean' not in dict(kept.named_parameters())
    assert torch.equal(kept.mean, torch.zeros(6))


def test_beta_exists_even_if_blocks_pass_bias_false():
    assert PWSConv2d(4, 6, 3, bias=False).bias.shape == (6,)
    assert PWSConv2d(4, 6, 3, bias=True, beta=False).bias is None


@pytest.mark.parametrize('number', [np.float32, np.float64, Fraction])
def test_gamma_may_be_any_real_number(number):
    x = torch.randn(2, 8, 5, 5)
    for relative in (False, True):
        conv = PWSConv2d(8, 4, 3, gamma=number(0.125), relative_gamma=relative)
        assert conv.gamma == (0.125 * 2 / 72 if relative else 0.125)
        conv(x)


def test_relative_gamma_is_a_fraction_of_the_he_variance():
    conv = PWSConv2d(8, 4, 3, groups=2, gamma=0.1, relative_gamma=True)
    assert conv.gamma == pytest.approx(0.1 * 2 / (4 * 9))


@pytest.mark.parametrize(
    'shape', [(6, 1, 1, 1), (6,)], ids=['official code', 'this package']
)
def test_checkpoints_with_either_shape_of_alpha_load(shape):
    conv = PWSConv2d(4, 6, 3)
    state = {k: torch.randn_like(v) for k, v in conv.state_dict().items()}
    alpha = state['alpha'].clone()
    state['alpha'] = alpha.reshape(shape)
    nn.Sequential(conv).load_state_dict({'0.' + k: v for k, v in state.items()})
    assert torch.equal(conv.alpha, alpha)


@pytest.mark.parametrize('load', [mmengine_load, nn.Module.load_state_dict])
def test_weights_without_means_load_as_zeros(load):
    """Those of a network from scratch: the mean of its filters is zero."""
    source = randomize(PWSConv2d(4, 6, 3))
    weights = source.state_dict()
    net = nn.Sequential(randomize(PWSConv2d(4, 6, 3, keep_mean=True)))
    load(net, {f'0.{key}': value for key, value in weights.items()}, strict=True)
    assert torch.equal(net[0].mean, torch.zeros(6)) and 'mean' not in weights
    assert torch.equal(net[0].effective_weight(), source.effective_weight())


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('load', [mmengine_load, nn.Module.load_state_dict])
def test_means_are_refused_by_a_layer_without_them(load, strict):
    """Even with strict=False, which MMEngine's runner and load_checkpoint have."""
    net = nn.Sequential(PWSConv2d(4, 6, 3, keep_mean=True))
    weights = net.state_dict()
    message = r"filters of 0 keep .*conv_cfg=dict\(type='PWS', keep_mean=True\)"
    with pytest.raises(ValueError, match=message):
        load(nn.Sequential(PWSConv2d(4, 6, 3)), weights, strict=strict)
    load(nn.Sequential(PWSConv2d(4, 6, 3, keep_mean=True)), weights, strict=strict)


def test_load_checkpoint_of_mmengine_refuses_means(tmp_path):
    path = str(tmp_path / 'kept.pth')
    kept = ConvModule(4, 6, 3, conv_cfg=dict(type='PWS', keep_mean=True))
    torch.save(kept.state_dict(), path)
    with pytest.raises(ValueError, match='filters of conv keep the mean'):
        load_checkpoint(ConvModule(4, 6, 3, conv_cfg=dict(type='PWS')), path)
    load_checkpoint(kept, path)


def test_an_alpha_of_another_size_is_refused():
    state = PWSConv2d(4, 6, 3).state_dict()
    with pytest.raises(RuntimeError, match='size mismatch for alpha'):
        PWSConv2d(4, 6, 3, alpha='layer').load_state_dict(state)


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Xavier', layer='Conv2d', distribution='uniform'),
        dict(type='Normal', layer='Conv2d', std=0.01),
        dict(type='Caffe2Xavier', layer='Conv2d'),
        [
            dict(type='TruncNormal', layer='Conv2d', std=0.02),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ],
    ],
    ids=lambda cfg: (cfg if isinstance(cfg, dict) else cfg[0])['type'],
)
@pytest.mark.parametrize('inside', ['module', 'list', 'ConvModule'])
def test_he_initialization_survives_init_cfg(init_cfg, inside):
    torch.manual_seed(0)

    class Block(BaseModule):
        def __init__(self):
            super().__init__(init_cfg)
            conv_cfg = dict(type='PWS')
            if inside == 'ConvModule':
                self.conv = ConvModule(32, 64, 3, conv_cfg=conv_cfg)
            else:
                conv = build_conv_layer(conv_cfg, 32, 64, 3)
                self.conv = nn.ModuleList([conv]) if inside == 'list' else conv
            self.plain = nn.Conv2d(32, 64, 3)

    block = Block()
    before = block.plain.weight.clone()
    block.init_weights()
    assert not torch.equal(block.plain.weight, before), 'init_cfg did not run'
    conv = next(m for m in block.modules() if isinstance(m, PWSConv2d))
    # fan_out would give half of this variance; the other inits differ by more.
    assert conv.weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.05)
    assert torch.equal(conv.alpha, torch.ones(64))
    assert torch.equal(conv.bias, torch.zeros(64))


@pytest.mark.parametrize(
    'make, gain',
    [
        (PWSConv2d, 'alpha'),
        (functools.partial(PWSConv2d, keep_mean=True), 'mean'),
        (functools.partial(WNConv2d, g='trained'), 'g'),
    ],
)
@pytest.mark.parametrize('load', [mmengine_load, nn.Module.load_state_dict])
def test_the_gain_of_filters_of_another_shape_does_not_load(make, gain, load):
    """Loading with strict=False skips filters of another shape: alpha and mean stay."""
    source, conv = make(3, 4, 5), make(3, 4, 3)
    for p in source.state_dict().values():
        nn.init.constant_(p, 7)
    weights = source.state_dict()
    before = copy.deepcopy(conv.state_dict())
    try:
        load(conv, weights, strict=False)
    except RuntimeError as e:  # torch raises it even with strict=False
        assert 'size mismatch for weight' in str(e)
    assert torch.equal(getattr(conv, gain), before[gain])
    assert torch.equal(conv.weight, before['weight'])
    assert (conv.bias == 7).all()
    assert gain in weights  # the caller's dict is not changed
    load(conv, make(3, 4, 3).state_dict(), strict=True)


def test_pretrained_still_loads(tmp_path):
    class Block(BaseModule):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg)
            self.conv = ConvModule(4, 6, 3, conv_cfg=dict(type='PWS'))

    source = Block()
    randomize(source.conv.conv)
    path = str(tmp_path / 'weights.pth')
    torch.save(source.state_dict(), path)
    loaded = Block(dict(type='Pretrained', checkpoint=path))
    loaded.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize('name', ['PWS', 'PWSConv', 'PWSConv2d'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_registered_in_every_scope(name, scope):
    init_default_scope(scope)
    conv = build_conv_layer(dict(type=name, gamma=1e-3), 4, 6, 3, bias=False)
    assert type(conv) is PWSConv2d
    assert conv.gamma == 1e-3


def test_importing_twice_is_harmless():
    # In another process: other tests must not see a second copy of the classes.
    code = """
import sys, pws_mmdet
for name in [m for m in sys.modules if m.startswith('pws_mmdet')]:
    del sys.modules[name]
import pws_mmdet
from mmcv.cnn import build_conv_layer
assert type(build_conv_layer(dict(type='PWS'), 4, 6, 3)) is pws_mmdet.PWSConv2d
"""
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(gamma=0), 'gamma must be positive and finite, got 0'),
        (dict(gamma=-1e-4), 'gamma must be positive and finite, got -0.0001'),
        (dict(gamma=math.nan), 'gamma must be positive and finite, got nan'),
        (dict(gamma=math.inf), 'gamma must be positive and finite, got inf'),
        (dict(gamma='1e-4'), "gamma must be a positive number, got '1e-4'"),
        (dict(keep_mean='yes'), 'keep_mean must be'),
        (dict(alpha='pixel'), "alpha must be one of .*'layer'.* got 'pixel'"),
        (dict(groups=3), 'divisible by groups, got in_channels=4.*groups=3'),
        (dict(groups=0), 'divisible by groups'),
        (dict(kernel_size=1, groups=4), 'at least 2 weights per filter.*groups=4'),
    ],
)
def test_bad_input(kwargs, message):
    kwargs = {'kernel_size': 3, **kwargs}
    with pytest.raises(ValueError, match=message):
        PWSConv2d(4, 8, **kwargs)


class TestNoStateOutsideTheParameters:
    """The next output is right after every way to change the parameters."""

    @pytest.fixture(params=[False, True], ids=['', 'keep_mean'])
    def conv(self, request):
        conv = randomize(PWSConv2d(4, 6, 3, keep_mean=request.param)).eval()
        conv(torch.randn(1, 4, 5, 5))  # fill any cache
        return conv

    def check(self, conv, **tolerance):
        x = torch.randn(1, 4, 5, 5)
        y = conv(x.to(conv.weight)).double()
        torch.testing.assert_close(y, reference(conv, x), **tolerance)

    def test_load_state_dict_after_eval(self, conv):
        conv.load_state_dict(randomize(copy.deepcopy(conv)).state_dict())
        self.check(conv, rtol=1e-4, atol=1e-5)

    def test_in_place_edit_through_data(self, conv):
        for p in conv.state_dict(keep_vars=True).values():
            p.data.copy_(torch.randn_like(p))
        self.check(conv, rtol=1e-4, atol=1e-5)

    def test_deepcopy_and_pickle(self, conv):
        buffer = io.BytesIO()
        torch.save(conv, buffer)
        buffer.seek(0)
        for twin in (
            copy.deepcopy(conv),
            pickle.loads(pickle.dumps(conv)),
            torch.load(buffer, weights_only=False),
        ):
            randomize(twin)
            self.check(twin, rtol=1e-4, atol=1e-5)
        self.check(conv, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, FLOAT16])
    def test_to_dtype(self, conv, dtype):
        conv.to(dtype)
        error = torch.finfo(dtype).eps
        self.check(conv, rtol=10 * error + 1e-4, atol=30 * error)

    def test_to_device(self, conv):
        meta = copy.deepcopy(conv).to('meta')
        assert meta(torch.empty(1, 4, 5, 5, device='meta')).shape == (1, 6, 3, 3)
        empty = meta.to_empty(device='cpu')
        empty.load_state_dict(conv.state_dict())
        self.check(empty, rtol=1e-4, atol=1e-5)

    def test_ema(self, conv):
        ema = ExponentialMovingAverage(conv, momentum=0.5)
        ema.update_parameters(conv)
        before = conv.weight.detach().clone()
        randomize(conv)
        ema.update_parameters(conv)
        average = (before + conv.weight) / 2
        torch.testing.assert_close(ema.module.weight, average)
        if conv.mean is not None:  # a constant is no average
            assert torch.equal(ema.module.mean, conv.mean)
        self.check(ema.module, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('keep_mean', [False, True])
def test_gradcheck(keep_mean):
    options = dict(groups=2, gamma=0.1, dtype=torch.float64, keep_mean=keep_mean)
    conv = randomize(PWSConv2d(4, 4, 3, **options))
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    params = dict(conv.named_parameters())

    def forward(x, *values):
        state = dict(zip(params, values, strict=True))
        return torch.func.functional_call(conv, state, (x,))

    assert torch.autograd.gradcheck(forward, (x, *params.values()))


@pytest.mark.parametrize('keep_mean', [False, True])
def test_autocast_bf16(keep_mean):
    conv = randomize(PWSConv2d(4, 6, 3, gamma=1e-5, keep_mean=keep_mean))
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), reference(conv, x), rtol=3e-2, atol=5e-2)


def test_effective_weight_is_that_of_the_equivalent_convolution():
    for alpha, keep_mean in product(('channel', 'layer', 'fixed'), (False, True)):
        conv = randomize(PWSConv2d(4, 6, 3, alpha=alpha, keep_mean=keep_mean))
        plain = nn.Conv2d(4, 6, 3)
        plain.weight.data.copy_(conv.effective_weight())
        plain.bias.data.copy_(conv.expanded_bias())
        x = torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(plain(x), conv(x))


def test_effective_weight_comes_from_standardize_weight():
    conv = randomize(PWSConv2d(4, 6, 3, gamma=1e-2, scale=False))
    expected = standardize_weight(conv.weight, conv.alpha, 1e-2, False)
    assert torch.equal(conv.effective_weight(), expected)


@pytest.mark.parametrize('layer', [PWSConv2d, WNConv2d])
def test_the_first_arguments_are_those_of_conv2d(layer):
    """They have the same order and defaults. The other arguments must be named."""
    ours = [*inspect.signature(layer).parameters.values()]
    theirs = [*inspect.signature(nn.Conv2d).parameters.values()]
    assert [(p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY] == [
        (p.name, p.default) for p in theirs
    ]
    conv = layer(4, 6, 3, 2, 1, 2, 2, False, 'reflect', 'meta', torch.float64)
    plain = nn.Conv2d(4, 6, 3, 2, 1, 2, 2, True, 'reflect', 'meta', torch.float64)
    for name in plain.__constants__:
        assert getattr(conv, name) == getattr(plain, name)
    assert conv.weight.device.type == 'meta' and conv.weight.dtype == torch.float64


@pytest.mark.parametrize('layer', [PWSConv2d, WNConv2d])
def test_an_argument_of_an_unknown_name_is_refused(layer):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        layer(4, 6, 3, gama=1e-3)


def test_repr_names_what_differs():
    assert 'gamma=0.001' in repr(PWSConv2d(4, 6, 3, gamma=1e-3))
    text = repr(PWSConv2d(4, 6, 3, gamma=0.1, relative_gamma=True))
    assert 'gamma=0.1, relative_gamma=True' in text
    text = repr(PWSConv2d(4, 6, 3, scale=False, alpha='layer', beta=False))
    assert "scale=False, alpha='layer', beta=False" in text
    assert 'bias' not in text and 'mean' not in text
    assert repr(PWSConv2d(4, 6, 3, keep_mean=True)).endswith(', keep_mean=True)')
