"""DyT: its formula, its gradient, and the layer in a norm_cfg."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer, is_norm
from mmdet.models.backbones import ResNet
from mmengine.registry import init_default_scope

from pws_mmdet.layers import DynamicTanh


def randomize(norm):
    """Set parameters to values at which each of them matters."""
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p) + 0.5)
    return norm


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (1, 3, 1, 1), (2, 3, 7), (2, 3)])
def test_agrees_with_the_formula(shape):
    norm, x = randomize(DynamicTanh(3)), torch.randn(shape)
    weight, bias, alpha = norm.weight, norm.bias, norm.alpha.item()
    for c, made in enumerate(norm(x).unbind(1)):
        expected = weight[c] * torch.tanh(alpha * x[:, c]) + bias[c]
        torch.testing.assert_close(made, expected)


def test_the_output_is_bounded_and_depends_on_one_value_alone():
    """So it is no normalization: neither the batch nor the map changes a value."""
    norm = DynamicTanh(3)
    x = 1e3 * torch.randn(2, 3, 4, 4)
    assert norm(x).abs().max() <= 1
    assert torch.equal(norm(x)[:1, :, :2], norm(x[:1, :, :2]))
    assert torch.equal(norm.eval()(x), norm.train()(x))


def test_gradcheck():
    norm = randomize(DynamicTanh(3).double())
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    params = dict(norm.named_parameters())

    def forward(x, *values):
        state = dict(zip(params, values, strict=True))
        return torch.func.functional_call(norm, state, (x,))

    assert torch.autograd.gradcheck(forward, (x, *params.values()))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    norm = randomize(DynamicTanh(3))
    x = torch.randn(2, 3, 4, 4).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, norm(x.float()).to(dtype), check_dtype=False)
    y = copy.deepcopy(norm).to(dtype)(x)
    assert y.dtype == dtype


def test_under_autocast():
    module = ConvModule(3, 4, 3, norm_cfg=dict(type='DyT'))
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x), rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_parameters_and_copies():
    norm = randomize(DynamicTanh(3, alpha=0.8))
    assert {k: tuple(v.shape) for k, v in norm.state_dict().items()} == {
        'alpha': (1,),
        'weight': (3,),
        'bias': (3,),
    }
    fresh = DynamicTanh(3, alpha=0.8)
    assert [p.tolist() for p in fresh.parameters()] == [
        [pytest.approx(0.8)],
        [1, 1, 1],
        [0, 0, 0],
    ]
    assert DynamicTanh(3).alpha.item() == 0.5
    x = torch.randn(2, 3, 4, 4)
    fresh.load_state_dict(norm.state_dict())
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), fresh):
        assert torch.equal(twin(x), norm(x))


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
@pytest.mark.parametrize('type_', ['DyT', 'DynamicTanh'])
def test_built_from_a_norm_cfg(type_, scope):
    init_default_scope(scope)
    name, norm = build_norm_layer(dict(type=type_, requires_grad=False), 6, postfix=1)
    assert name == 'dyt1' and type(norm) is DynamicTanh
    assert not any(p.requires_grad for p in norm.parameters())
    assert not is_norm(norm)  # no tool may fold or freeze it as one


def test_blocks_of_mmdetection_take_it():
    net = ResNet(18, base_channels=2, stem_channels=2, norm_cfg=dict(type='DyT'))
    net.init_weights()
    norms = [m for m in net.modules() if isinstance(m, DynamicTanh)]
    assert len(norms) == 20 and net.layer1[0].norm1 is net.layer1[0].dyt1
    net(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    assert all(norm.alpha.grad is not None for norm in norms)


@pytest.mark.parametrize(
    'kwargs, message',
    [(dict(num_features=0), 'num_features'), (dict(alpha=0), 'alpha must be positive')],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DynamicTanh(**{'num_features': 3, **kwargs})
