"""Weight normalization: the identities of equations (9)-(11), and the layer."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import FLOAT16
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pws_mmdet.layers import WNConv2d, normalize_weight


def randomize(conv):
    """Set parameters to values at which each of them matters."""
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn_like(p) + 0.5)
    return conv


def formula(weight, g=None):
    """g_o W_o / ||W_o||, one filter after the other, in fp64."""
    filters = [w / w.square().sum().sqrt() for w in weight.double()]
    if g is not None:
        filters = [g_o * w for g_o, w in zip(g.double(), filters, strict=True)]
    return torch.stack(filters)


@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('shape', [(4, 6), (4, 6, 3), (5, 3, 2, 3), (3, 1, 1, 1)])
def test_agrees_with_the_formula(shape, trained):
    weight = torch.randn(shape)
    g = torch.randn(shape[0]) if trained else None
    result = normalize_weight(weight, g)
    torch.testing.assert_close(result.double(), formula(weight, g))
    norms = result.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(shape[0]) if g is None else g.abs())


@pytest.mark.parametrize('factor', [1e-2, 0.5, 1e6])
def test_scale_of_a_filter_does_not_matter(factor):
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(
        normalize_weight(weight * factor), normalize_weight(weight)
    )


def test_gradient():
    """Equations (10) and (11), and that the gradient of W is orthogonal to W."""
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    g = torch.rand(8, dtype=torch.float64) + 0.5
    w_hat = normalize_weight(weight, g)
    grad_hat = torch.randn_like(w_hat)
    w_hat.backward(grad_hat)
    grad, w, w_hat, grad_hat = (
        t.detach().flatten(1) for t in (weight.grad, weight, w_hat, grad_hat)
    )
    assert (grad * w).sum(1).abs().max() < 1e-12
    along = (grad_hat * w_hat).sum(1) ** 2 / g**2
    torch.testing.assert_close(
        grad.square().sum(1),
        g**2 / w.square().sum(1) * (grad_hat.square().sum(1) - along),
    )
    # Equation (10) holds for gradients without a part along W: remove that part.
    weight.grad = None
    grad_hat = grad_hat - (grad_hat * w).sum(1, True) / w.square().sum(1, True) * w
    normalize_weight(weight, g).backward(grad_hat.view_as(weight))
    mean = g / w.norm(dim=1) * grad_hat.mean(1)
    torch.testing.assert_close(weight.grad.mean(dim=(1, 2, 3)), mean)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
def test_a_filter_of_zeros_stays_zero(dtype):
    weight = torch.randn(3, 2, 3, 3, dtype=dtype)
    weight[1] = 0
    weight.requires_grad_()
    g = torch.ones(3, dtype=dtype, requires_grad=True)
    result = normalize_weight(weight, g)
    result.sum().backward()
    assert result[1].abs().max() == 0
    assert result[0].abs().max() > 0
    assert weight.grad.isfinite().all() and g.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_weights_are_computed_in_fp32(dtype):
    weight = (torch.randn(4, 8, 3, 3) * 1e4).to(dtype)  # the norm overflows in fp16
    g = torch.rand(4).to(dtype)
    result = normalize_weight(weight, g)
    assert result.dtype == dtype
    torch.testing.assert_close(result, formula(weight, g).to(dtype))


def test_autocast_does_not_lower_the_precision():
    weight, g = torch.randn(8, 4, 3, 3), torch.rand(8)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = normalize_weight(weight, g)
        y = WNConv2d(4, 6, 3, g='trained')(torch.randn(1, 4, 5, 5))
    assert torch.equal(result, normalize_weight(weight, g))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(g='trained', groups=2),
        dict(g='trained', stride=2, padding=1, dilation=2),
        dict(padding='same', padding_mode='reflect', beta=False),
        dict(padding=1, padding_mode='circular', groups=4),
    ],
    ids=str,
)
def test_is_a_convolution_with_the_normalized_filters(kwargs):
    conv = randomize(WNConv2d(4, 8, 3, **kwargs)).double()
    plain_kwargs = {k: v for k, v in kwargs.items() if k not in ('g', 'beta')}
    plain = nn.Conv2d(4, 8, 3, **plain_kwargs).double()
    for name in plain.__constants__:
        assert getattr(conv, name) == getattr(plain, name)
    with torch.no_grad():
        plain.weight.copy_(formula(conv.weight, conv.g))
        plain.bias.copy_(torch.zeros(8) if conv.bias is None else conv.bias)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x))
    # They are the weight and bias of the equivalent convolution.
    torch.testing.assert_close(conv.effective_weight(), plain.weight)
    if conv.bias is None:
        assert conv.expanded_bias() is None
    else:
        assert torch.equal(conv.expanded_bias(), plain.bias)


def test_equals_weight_norm_of_torch():
    conv = randomize(WNConv2d(4, 6, 3, g='trained', dtype=torch.float64))
    theirs = weight_norm(nn.Conv2d(4, 6, 3).double(), dim=0)
    direction = theirs.parametrizations.weight
    with torch.no_grad():
        direction.original0.copy_(conv.g.view(-1, 1, 1, 1))
        direction.original1.copy_(conv.weight)
        theirs.bias.copy_(conv.bias)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(conv(x), theirs(x))
    conv(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(conv.g.grad, direction.original0.grad.flatten())
    torch.testing.assert_close(conv.weight.grad, direction.original1.grad)
    torch.testing.assert_close(conv.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize('g', ['fixed', 'trained'])
def test_gradcheck(g):
    conv = randomize(WNConv2d(4, 4, 2, groups=2, g=g, dtype=torch.float64))
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    params = dict(conv.named_parameters())

    def forward(x, *values):
        state = dict(zip(params, values, strict=True))
        return torch.func.functional_call(conv, state, (x,))

    assert torch.autograd.gradcheck(forward, (x, *params.values()))


def check_initial(conv):
    """The initialization of Salimans & Kingma, with g = 1."""
    assert conv.weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert conv.weight.mean().abs() < 2e-3
    assert torch.equal(conv.g, torch.ones(64))
    assert torch.equal(conv.bias, torch.zeros(64))


@pytest.mark.parametrize(
    'init_cfg',
    [
        None,
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Xavier', layer='Conv2d', distribution='uniform'),
    ],
    ids=str,
)
def test_initialization_survives_the_blocks(init_cfg):
    class Block(BaseModule):
        def __init__(self):
            super().__init__(init_cfg)
            conv_cfg = dict(type='WN', g='trained')
            self.convs = nn.ModuleList(
                [
                    build_conv_layer(conv_cfg, 16, 64, 3, bias=False),
                    ConvModule(16, 64, 3, conv_cfg=conv_cfg, norm_cfg=dict(type='BN')),
                ]
            )

    block = Block()
    conv, module = block.convs
    check_initial(conv)
    check_initial(module.conv)
    block.init_weights()
    check_initial(conv)
    check_initial(module.conv)
    randomize(conv).reset_parameters()
    check_initial(conv)


def test_parameters():
    assert list(WNConv2d(4, 6, 3).state_dict()) == ['weight', 'bias']
    conv = WNConv2d(4, 6, 3, g='trained', bias=True, beta=False)
    assert {k: v.shape for k, v in conv.state_dict().items()} == {
        'weight': (6, 4, 3, 3),
        'g': (6,),
    }
    assert WNConv2d(4, 6, 3, bias=False).bias.shape == (6,)


def test_copies_are_independent():
    conv = randomize(WNConv2d(4, 6, 3, g='trained'))
    x = torch.randn(1, 4, 5, 5)
    y = conv(x)
    loaded = WNConv2d(4, 6, 3, g='trained')
    loaded.load_state_dict(conv.state_dict())
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), loaded):
        assert torch.equal(twin(x), y)
        randomize(twin)
        expected = F.conv2d(x, formula(twin.weight, twin.g).float(), twin.bias)
        torch.testing.assert_close(twin(x), expected)
    assert torch.equal(conv(x), y)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, FLOAT16])
def test_to_dtype(dtype):
    conv = randomize(WNConv2d(4, 6, 3, g='trained'))
    x = torch.randn(1, 4, 5, 5)
    y = conv(x)
    error = torch.finfo(dtype).eps
    torch.testing.assert_close(
        conv.to(dtype)(x.to(dtype)).float(), y, rtol=10 * error, atol=10 * error + 1e-6
    )


@pytest.mark.parametrize('name', ['WN', 'WNConv2d'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_registered_in_every_scope(name, scope):
    init_default_scope(scope)
    conv = build_conv_layer(dict(type=name, g='trained'), 4, 6, 3, bias=False)
    assert type(conv) is WNConv2d
    assert conv.g.shape == (6,)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(g='free'), "g must be one of .*'trained'.* got 'free'"),
        (dict(groups=3), 'divisible by groups, got in_channels=4.*groups=3'),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        WNConv2d(4, 8, 3, **kwargs)


def test_repr_names_what_differs():
    assert (
        repr(WNConv2d(4, 6, 3)) == 'WNConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1))'
    )
    assert "g='trained', beta=False" in repr(WNConv2d(4, 6, 3, g='trained', beta=False))
