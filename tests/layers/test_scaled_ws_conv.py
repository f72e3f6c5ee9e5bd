"""Scaled weight standardization: its formula, its signal, and the layer."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import FLOAT16
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from torch import fx, nn

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import ScaledWSConv2d

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


def randomize(conv):
    """Set parameters to values at which each of them matters."""
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn_like(p) + 0.5)
    return conv


def formula(conv):
    """a g (W - E) / sqrt(n Var + eps), one filter after the other, in fp64."""
    filters = []
    for g, w in zip(conv.gain.double(), conv.weight.double(), strict=True):
        n, centered = w.numel(), w - w.mean()
        variance = centered.square().mean()
        filters.append(g * centered / (n * variance + conv.eps).sqrt())
    return conv.activation_gain * torch.stack(filters)


KWARGS = [
    dict(),
    dict(groups=2, eps=0.5),
    dict(stride=2, padding=1, dilation=2, activation_gain=1),
    dict(padding='same', padding_mode='reflect', beta=False),
]


@pytest.mark.parametrize('kwargs', KWARGS, ids=str)
def test_is_a_convolution_with_the_filters_of_the_formula(kwargs):
    conv = randomize(ScaledWSConv2d(4, 8, 3, **kwargs)).double()
    own = ('activation_gain', 'eps', 'beta')
    options = {k: v for k, v in kwargs.items() if k not in own}
    plain = nn.Conv2d(4, 8, 3, **options).double()
    for name in plain.__constants__:
        assert getattr(conv, name) == getattr(plain, name)
    with torch.no_grad():
        plain.weight.copy_(formula(conv))
        plain.bias.copy_(torch.zeros(8) if conv.bias is None else conv.bias)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x))
    torch.testing.assert_close(conv.effective_weight(), plain.weight)
    assert (conv.bias is None) == (kwargs.get('beta') is False)


def test_the_gain_in_the_filters_is_the_gain_of_the_activation():
    """A scaled ReLU and a layer without the gain compute the same, also padded."""
    conv = randomize(ScaledWSConv2d(4, 6, 3, padding=1, dtype=torch.float64))
    other = ScaledWSConv2d(4, 6, 3, padding=1, activation_gain=1, dtype=torch.float64)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(F.relu(x)), other(RELU_GAIN * F.relu(x)))
    assert conv.activation_gain == RELU_GAIN


def test_is_the_twin_of_pws():
    """The same filters with alpha = a g / sqrt(2) and gamma = eps / n."""
    n, eps = 4 * 9, 0.3
    conv = randomize(ScaledWSConv2d(4, 6, 3, eps=eps, dtype=torch.float64))
    pws = PWSConv2d(4, 6, 3, gamma=eps / n, dtype=torch.float64)
    with torch.no_grad():
        pws.weight.copy_(conv.weight)
        pws.alpha.copy_(RELU_GAIN * conv.gain / math.sqrt(2))
    torch.testing.assert_close(conv.effective_weight(), pws.effective_weight())


def test_variance_is_kept_from_layer_to_layer():
    """The purpose of the activation's gain: variance 1 in, variance 1 out."""
    layers = [ScaledWSConv2d(256, 256, 1) for _ in range(4)]
    y = torch.randn(1, 256, 8, 8)
    with torch.no_grad():
        for conv in layers:
            y = conv(y.relu())
    assert y.var().item() == pytest.approx(1, rel=0.15)
    assert y.mean((0, 2, 3)).square().mean() < 0.2 and abs(y.mean()) < 0.1


def test_gradcheck():
    conv = randomize(ScaledWSConv2d(4, 4, 2, groups=2, dtype=torch.float64))
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    params = dict(conv.named_parameters())

    def forward(x, *values):
        state = dict(zip(params, values, strict=True))
        return torch.func.functional_call(conv, state, (x,))

    assert torch.autograd.gradcheck(forward, (x, *params.values()))


def test_gradient_of_the_weights_has_no_mean():
    conv = randomize(ScaledWSConv2d(4, 6, 3, dtype=torch.float64))
    conv(torch.rand(2, 4, 6, 6, dtype=torch.float64)).square().sum().backward()
    assert conv.weight.grad.mean((1, 2, 3)).abs().max() < 1e-10


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_a_constant_filter_is_zero_and_its_gradient_is_finite(dtype):
    conv = ScaledWSConv2d(2, 3, 3, dtype=dtype)
    nn.init.constant_(conv.weight, 0.25)
    conv.effective_weight().sum().backward()
    assert conv.effective_weight().abs().max() == 0
    assert conv.weight.grad.isfinite().all() and conv.gain.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision_of_the_filters():
    conv = randomize(ScaledWSConv2d(4, 6, 3))
    filters = conv.effective_weight()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(conv.effective_weight(), filters)
        y = conv(torch.randn(1, 4, 5, 5))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, FLOAT16])
def test_to_dtype(dtype):
    conv = randomize(ScaledWSConv2d(4, 6, 3))
    x = torch.randn(1, 4, 5, 5)
    y = conv(x)
    error = torch.finfo(dtype).eps
    torch.testing.assert_close(
        conv.to(dtype)(x.to(dtype)).float(), y, rtol=20 * error, atol=20 * error + 1e-6
    )


def check_initial(conv):
    assert conv.weight.var().item() * conv.weight[0].numel() == pytest.approx(
        1, rel=0.06
    )
    assert torch.equal(conv.gain, torch.ones(64))
    assert torch.equal(conv.bias, torch.zeros(64))


def test_initialization_survives_the_blocks():
    class Block(BaseModule):
        def __init__(self):
            super().__init__(dict(type='Kaiming', layer='Conv2d'))
            cfg = dict(type='ScaledWS')
            self.conv = build_conv_layer(cfg, 16, 64, 3, bias=False)
            self.module = ConvModule(16, 64, 3, conv_cfg=cfg)

    block = Block()
    for _ in range(2):
        check_initial(block.conv)
        check_initial(block.module.conv)
        block.init_weights()
    randomize(block.conv).reset_parameters()
    check_initial(block.conv)


def test_parameters_and_copies():
    conv = randomize(ScaledWSConv2d(4, 6, 3, bias=False))
    assert {k: tuple(v.shape) for k, v in conv.state_dict().items()} == {
        'weight': (6, 4, 3, 3),
        'bias': (6,),
        'gain': (6,),
    }
    x = torch.randn(1, 4, 5, 5)
    y = conv(x)
    loaded = ScaledWSConv2d(4, 6, 3)
    loaded.load_state_dict(conv.state_dict())
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), loaded):
        assert torch.equal(twin(x), y)
        randomize(twin)
        expected = F.conv2d(x, formula(twin).float(), twin.bias)
        torch.testing.assert_close(twin(x), expected)
    assert torch.equal(conv(x), y)


def test_fx_records_one_call():
    traced = fx.symbolic_trace(randomize(ScaledWSConv2d(4, 6, 3)))
    names = {getattr(node.target, '__name__', '') for node in traced.graph.nodes}
    assert 'standardize_weight' in names


@pytest.mark.parametrize('name', ['ScaledWS', 'ScaledWSConv2d'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_registered_in_every_scope(name, scope):
    init_default_scope(scope)
    conv = build_conv_layer(dict(type=name, eps=1e-5), 4, 6, 3, bias=False)
    assert type(conv) is ScaledWSConv2d
    assert conv.eps == 1e-5


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(eps=0), 'eps must be positive and finite, got 0'),
        (dict(activation_gain=-1.0), 'activation_gain must be positive and finite'),
        (dict(groups=4, kernel_size=1), 'at least 2 weights per filter'),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ScaledWSConv2d(
            **{**dict(in_channels=4, out_channels=8, kernel_size=3), **kwargs}
        )


def test_repr_names_what_differs():
    text = 'ScaledWSConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), eps=0.0001)'
    assert repr(ScaledWSConv2d(4, 6, 3)) == text
    other = repr(ScaledWSConv2d(4, 6, 3, activation_gain=1, beta=False))
    assert 'activation_gain=1, eps=0.0001, beta=False' in other
