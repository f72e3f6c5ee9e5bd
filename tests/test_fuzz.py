"""Layers get random arguments. Wrong ones raise an error that names the argument."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import build_conv_layer

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import (
    AnySizeInstanceNorm2d,
    DynamicTanh,
    NoNorm,
    ScaledWSConv2d,
    SwitchableNorm2d,
    WNConv2d,
)

settings.register_profile(
    'repeatable', derandomize=True, deadline=None, database=None, max_examples=100
)
settings.load_profile('repeatable')

SIZES = st.integers(1, 3)
PAIRS = SIZES | st.tuples(SIZES, SIZES) | st.lists(SIZES, min_size=2, max_size=2)
CONV = dict(
    stride=PAIRS,
    padding=st.integers(0, 2) | st.tuples(SIZES, SIZES) | st.just('valid'),
    dilation=PAIRS,
    bias=st.booleans(),
    beta=st.booleans(),
    padding_mode=st.sampled_from(['zeros', 'reflect', 'replicate', 'circular']),
    dtype=st.sampled_from([None, torch.float32, torch.float64, torch.bfloat16]),
)
OWN = {
    PWSConv2d: dict(
        gamma=st.floats(1e-12, 1e3) | st.integers(1, 9),
        relative_gamma=st.booleans(),
        scale=st.booleans(),
        alpha=st.sampled_from(['channel', 'layer', 'fixed']),
        keep_mean=st.booleans(),
    ),
    WNConv2d: dict(g=st.sampled_from(['fixed', 'trained'])),
    ScaledWSConv2d: dict(
        eps=st.floats(1e-9, 1e3), activation_gain=st.floats(0.1, 10) | st.integers(1, 9)
    ),
}
CONVOLUTIONS = list(OWN)


@st.composite
def convolutions(draw, cls):
    """Draw valid arguments of a convolution."""
    groups = draw(SIZES)
    kernel_size = draw(PAIRS)
    kwargs = draw(st.fixed_dictionaries({}, optional={**CONV, **OWN[cls]}))
    in_channels = groups * draw(SIZES)
    if (
        cls is not WNConv2d
        and in_channels == groups
        and kernel_size in (1, (1, 1), [1, 1])
    ):
        kernel_size = 2
    if kwargs.get('stride') in (None, 1) and draw(st.booleans()):
        kwargs['padding'] = 'same'
    return (in_channels, groups * draw(SIZES), kernel_size), {
        **kwargs,
        'groups': groups,
    }


def by_the_formula(conv, kwargs):
    """Compute the filters by equations (12) and (9) of the paper, one by one."""
    filters = []
    n = conv.weight[0].numel()
    for o, w in enumerate(conv.weight.detach().double()):
        if isinstance(conv, WNConv2d):
            gain = 1.0 if conv.g is None else conv.g[o].item()
            filters.append(gain * w / w.square().sum().sqrt())
            continue
        if isinstance(conv, ScaledWSConv2d):
            gain = conv.activation_gain * conv.gain[o].item()
            w = w - w.sum() / n
            filters.append(gain * w / math.sqrt(w.square().sum() + conv.eps))
            continue
        gamma = kwargs.get('gamma', 1e-4)
        gamma *= 2 / n if kwargs.get('relative_gamma') else 1
        w = w - w.sum() / n
        w = w / math.sqrt(w.square().sum() / n + gamma)
        w = w * (math.sqrt(2 / n) if kwargs.get('scale', True) else 1)
        alpha = conv.alpha
        filters.append(w if alpha is None else w * alpha[o % len(alpha)].item())
    return torch.stack(filters)


@pytest.mark.parametrize('cls', CONVOLUTIONS)
def test_a_layer_convolves_with_the_filters_of_the_formula(cls):
    @given(convolutions(cls), st.integers(0, 99))
    def check(arguments, seed):
        args, kwargs = arguments
        torch.manual_seed(seed)
        conv = cls(*args, **kwargs)
        with torch.no_grad():
            for p in conv.parameters():
                p.add_(torch.randn_like(p))
        x = torch.randn(2, args[0], 9, 8, dtype=conv.weight.dtype, requires_grad=True)
        y = conv(x)
        y.sum().backward()
        for p in (x, *conv.parameters()):
            assert p.grad.isfinite().all()

        plain = torch.nn.Conv2d(
            *args,
            **{k: v for k, v in kwargs.items() if k in CONV and k != 'beta'},
            groups=kwargs['groups'],
        ).double()
        plain.weight.data = by_the_formula(conv, kwargs)
        bias = torch.zeros(1) if conv.bias is None else conv.bias.detach()
        plain.bias = torch.nn.Parameter(bias.double().expand(args[1]))
        expected = plain(x.double())
        tolerance = dict(float64=1e-10, float32=1e-4, bfloat16=0.05)
        tolerance = tolerance[str(y.dtype).removeprefix('torch.')]
        scale = max(1, expected.abs().max().item())
        assert (y.double() - expected).abs().max() <= tolerance * scale

        twin = cls(*args, **kwargs)
        twin.load_state_dict(conv.state_dict())
        assert torch.equal(twin(x), y)

    check()


NO_SIZE = [0, -1, 1.5, '3', None, True, math.nan, (1, 2, 3), (), (1, 0), ('1', 1), {}]
NO_FLAG = [None, 0, 1, 0.5, 'True', 'no', []]
NO_NUMBER = [0, -1e-4, math.nan, math.inf, '1e-4', None, [1e-4], 1j, 10**400]
NO_MODE = [None, True, 1, 'Channel', '', ['layer']]
WRONG = dict(
    in_channels=[v for v in NO_SIZE if v != 1],
    out_channels=NO_SIZE,
    kernel_size=NO_SIZE,
    stride=NO_SIZE,
    dilation=NO_SIZE,
    groups=[*NO_SIZE, 101],  # divides no number of channels here
    padding=[-1, 1.5, None, True, (1, 2, 3), (-1, 0), 'Same', '1'],
    padding_mode=['constant', None, 0, ['zeros'], {}],
    beta=NO_FLAG,
    dtype=[torch.int64, torch.complex64, 'float32', 32],
)
WRONG_OWN = {
    PWSConv2d: dict(
        gamma=[*NO_NUMBER, True],
        relative_gamma=NO_FLAG,
        scale=NO_FLAG,
        alpha=NO_MODE,
        keep_mean=NO_FLAG,
    ),
    WNConv2d: dict(g=NO_MODE),
    ScaledWSConv2d: dict(eps=[*NO_NUMBER, True], activation_gain=NO_NUMBER),
}


@pytest.mark.parametrize('cls', CONVOLUTIONS)
def test_the_error_names_a_wrong_argument_of_a_convolution(cls):
    """The constructor raises it, not the first forward pass."""
    wrong = {**WRONG, **WRONG_OWN[cls]}
    names = st.sampled_from(sorted(wrong))

    @given(
        convolutions(cls),
        names.flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(wrong[n]))),
    )
    @settings(max_examples=300)
    def check(arguments, wrong_argument):
        args, kwargs = arguments
        kwargs.update(
            zip(('in_channels', 'out_channels', 'kernel_size'), args, strict=True)
        )
        name, value = wrong_argument
        with pytest.raises(ValueError, match=name):
            cls(**{**kwargs, name: value})

    check()


@pytest.mark.parametrize(
    'cls, wrong',
    [
        (NoNorm, dict(num_features=NO_SIZE, bias=NO_FLAG)),
        (DynamicTanh, dict(num_features=NO_SIZE, alpha=[*NO_NUMBER, True])),
        (
            SwitchableNorm2d,
            dict(num_features=NO_SIZE, eps=NO_NUMBER[1:], momentum=NO_NUMBER[1:]),
        ),
        (
            AnySizeInstanceNorm2d,
            dict(
                num_features=NO_SIZE,
                eps=NO_NUMBER[1:],
                momentum=[v for v in NO_NUMBER[1:] if v is not None],
                affine=NO_FLAG,
                track_running_stats=NO_FLAG,
            ),
        ),
    ],
)
def test_the_error_names_a_wrong_argument_of_a_norm_layer(cls, wrong):
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                cls(**{'num_features': 2, name: value})


@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.floats(1e-9, 1), st.floats(0, 1))
def test_norm_layers_are_finite_and_load_their_weights(n, c, h, w, bias, eps, momentum):
    x = torch.randn(n, c, h, w, requires_grad=True)
    for make in (
        lambda: NoNorm(c, bias, eps),
        lambda: SwitchableNorm2d(c, eps, momentum),
        lambda: AnySizeInstanceNorm2d(c, eps, momentum, bias),
    ):
        norm, twin = make(), make()
        y = norm(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
        twin.load_state_dict(norm.state_dict())
        assert torch.equal(twin.eval()(x), norm.eval()(x))


@pytest.mark.parametrize(
    'cfg, name',
    [(dict(type='PWS', gama=1e-4), 'gama'), (dict(type='WN', gamma=1e-4), 'gamma')],
)
def test_the_error_names_an_unknown_option_of_a_layer(cfg, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        build_conv_layer(cfg, 4, 4, 3, padding=1, bias=False)
