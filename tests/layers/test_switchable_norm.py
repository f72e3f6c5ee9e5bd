import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer, fuse_conv_bn
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from torch import nn

from pws_mmdet.layers import SwitchableNorm2d


def randomize(norm):
    """Set parameters and buffers to values at which each of them matters."""
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p))
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def reference(norm, x):
    """The definition: each mean and variance from x itself, in fp64."""
    x = x.double()
    means, variances = [], []
    for dim in ((2, 3), (1, 2, 3), (0, 2, 3)):
        means.append(x.mean(dim, keepdim=True))
        variances.append(((x - means[-1]) ** 2).mean(dim, keepdim=True))
    if not norm.training:
        means[2] = norm.running_mean.double().view(1, -1, 1, 1)
        variances[2] = norm.running_var.double().view(1, -1, 1, 1)
    mean = sum(
        w * m for w, m in zip(norm.mean_weight.double().softmax(0), means, strict=True)
    )
    variance = sum(
        w * v
        for w, v in zip(norm.var_weight.double().softmax(0), variances, strict=True)
    )
    y = (x - mean) / (variance + norm.eps).sqrt()
    return y * norm.weight.double().view(-1, 1, 1) + norm.bias.double().view(-1, 1, 1)


SHAPES = [(3, 4, 5, 6), (1, 4, 5, 6), (3, 4, 1, 1), (1, 4, 1, 1), (3, 4, 1, 7)]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_agrees_with_the_definition(shape, training):
    norm = randomize(SwitchableNorm2d(4)).train(training)
    x = torch.randn(shape) * torch.rand(1, 4, 1, 1) + torch.randn(shape[0], 4, 1, 1)
    x.requires_grad_()
    y, expected = norm(x), reference(norm, x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(shape)
    leaves = [x, *norm.parameters()]
    grads = torch.autograd.grad(y, leaves, upstream)
    expected_grads = torch.autograd.grad(expected, leaves, upstream.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


def test_by_hand():
    norm = SwitchableNorm2d(2, eps=0.0).double()
    x = torch.tensor([[[[0, 2]], [[4, 4]]], [[[2, 2]], [[0, 4]]]]).double()
    # (IN + LN + BN) / 3
    mean = [[1 + 2.5 + 1.5, 4 + 2.5 + 3], [2 + 2 + 1.5, 2 + 2 + 3]]
    variance = [[1 + 2.75 + 0.75, 0 + 2.75 + 3], [0 + 2 + 0.75, 4 + 2 + 3]]
    mean, variance = (
        torch.tensor(s).double().view(2, 2, 1, 1) / 3 for s in (mean, variance)
    )
    torch.testing.assert_close(norm(x), (x - mean) / variance.sqrt())


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kind', ['IN', 'LN', 'BN'])
def test_one_statistic_alone_is_that_norm(kind, training):
    norm = randomize(SwitchableNorm2d(4)).double().train(training)
    for weight in (norm.mean_weight, norm.var_weight):
        weight.data = 1e4 * F.one_hot(torch.tensor(['IN', 'LN', 'BN'].index(kind)), 3)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 2 + 1
    if kind == 'IN':
        expected = F.instance_norm(x, weight=norm.weight, bias=norm.bias)
    elif kind == 'LN':
        affine = (p.view(4, 1, 1).expand(4, 5, 6) for p in (norm.weight, norm.bias))
        expected = F.layer_norm(x, (4, 5, 6), *affine)
    else:
        running = norm.running_mean.clone(), norm.running_var.clone()
        expected = F.batch_norm(x, *running, norm.weight, norm.bias, training)
    torch.testing.assert_close(norm(x), expected)


def test_running_statistics_are_those_of_bn():
    norm, bn = SwitchableNorm2d(4, momentum=0.3), nn.BatchNorm2d(4, momentum=0.3)
    n = 3 * 5 * 6
    unbiased_var = torch.ones(4)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 6) * 2 + 1
        norm(x), bn(x)
        unbiased_var = 0.7 * unbiased_var + 0.3 * x.var(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, bn.running_mean)
    torch.testing.assert_close(bn.running_var, unbiased_var)
    # BN averages the unbiased variance, this layer (n - 1) / n times as much.
    from_start = 0.7**3
    torch.testing.assert_close(
        norm.running_var - from_start, (bn.running_var - from_start) * (n - 1) / n
    )


def test_eval_changes_no_buffer_and_images_do_not_affect_each_other():
    norm = randomize(SwitchableNorm2d(4)).eval()
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])
    norm.train()
    assert not torch.allclose(norm(x)[:1], norm(x[:1]))


def test_invariant_to_scale_and_shift():
    norm = randomize(SwitchableNorm2d(4, eps=1e-12)).double()
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(100 * x - 7), norm(x))


def test_in_and_bn_are_equal_for_a_batch_of_one_image():
    norm = randomize(SwitchableNorm2d(4))
    swapped = copy.deepcopy(norm)
    for weight in (swapped.mean_weight, swapped.var_weight):
        weight.data = weight.data.flip(0)
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(swapped(x), norm(x))


def test_variance_is_exact_at_a_large_mean():
    norm = SwitchableNorm2d(4)
    x = torch.randn(3, 4, 5, 6) + 1e4  # E[x^2] - E[x]^2 would lose all digits
    torch.testing.assert_close(norm(x).double(), reference(norm, x), rtol=0, atol=5e-3)


def test_gradcheck():
    norm = randomize(SwitchableNorm2d(3)).double()
    params = dict(norm.named_parameters())
    for training in (True, False):
        norm.train(training)

        def forward(x, *values):
            state = dict(zip(params, values, strict=True))
            return torch.func.functional_call(norm, state, (x,))

        x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(forward, (x, *params.values()))


@pytest.mark.parametrize('module_too', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_input_is_computed_in_fp32(dtype, module_too):
    norm = randomize(SwitchableNorm2d(4))
    if module_too:
        norm.to(dtype)
    x = (torch.randn(3, 4, 5, 6) * 200).to(dtype)  # the squares overflow in fp16
    running_mean = norm.running_mean.double()
    for training in (True, False):
        norm.train(training)
        expected = reference(norm, x)
        y = norm(x)
        assert y.dtype == dtype
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=1e-4)
    assert norm.running_var.isfinite().all()
    batch_mean = x.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(
        norm.running_mean.double(),
        0.9 * running_mean + 0.1 * batch_mean,
        rtol=0.01,
        atol=0.1,
    )


def test_autocast_bf16():
    norm = randomize(SwitchableNorm2d(6))
    conv = nn.Conv2d(3, 6, 3)
    x = torch.randn(2, 3, 7, 7)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        z = conv(x)
        y = norm(z)
    assert z.dtype == y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(y.double(), reference(norm, z), rtol=1e-2, atol=1e-4)


def test_an_empty_batch_leaves_everything_finite():
    norm = randomize(SwitchableNorm2d(4))
    before = copy.deepcopy(norm.state_dict())
    y = norm(torch.empty(0, 4, 5, 6))
    assert y.shape == (0, 4, 5, 6)
    y.sum().backward()
    assert all(p.grad.abs().max() == 0 for p in norm.parameters())
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])


def test_state_dict():
    norm = SwitchableNorm2d(4)
    state = norm.state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        'weight': (4,),
        'bias': (4,),
        'mean_weight': (3,),
        'var_weight': (3,),
        'running_mean': (4,),
        'running_var': (4,),
    }
    for key in ('weight', 'mean_weight', 'var_weight', 'running_var'):
        assert torch.equal(state[key], torch.ones_like(state[key]))
    for key in ('bias', 'running_mean'):
        assert torch.equal(state[key], torch.zeros(4))


def test_copies():
    norm = randomize(SwitchableNorm2d(4)).eval()
    loaded = SwitchableNorm2d(4).eval()
    loaded.load_state_dict(norm.state_dict())
    x = torch.randn(2, 4, 3, 3)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), loaded):
        assert torch.equal(twin(x), norm(x))


@pytest.mark.parametrize('name', ['SN', 'SwitchableNorm2d'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_built_from_a_norm_cfg(name, scope):
    init_default_scope(scope)
    attribute, norm = build_norm_layer(dict(type=name), 16, postfix=1)
    assert attribute == 'sn1'
    assert type(norm) is SwitchableNorm2d
    assert norm.eps == 1e-5
    assert all(p.requires_grad for p in norm.parameters())
    cfg = dict(type=name, requires_grad=False, eps=1e-3, momentum=0.2)
    norm = build_norm_layer(cfg, 16)[1]
    assert (norm.eps, norm.momentum) == (1e-3, 0.2)
    assert not any(p.requires_grad for p in norm.parameters())


def test_initialization_survives_the_blocks():
    class Block(BaseModule):
        def __init__(self):
            super().__init__(dict(type='Kaiming', layer='Conv2d'))
            self.conv = ConvModule(3, 4, 3, norm_cfg=dict(type='SN'))

    block = Block()
    block.init_weights()
    for key, value in SwitchableNorm2d(4).state_dict().items():
        assert torch.equal(block.conv.norm.state_dict()[key], value)
    assert block.conv.conv.bias is None


def test_freezing_in_a_resnet_of_mmdet():
    cfg = dict(type='SN')
    net = ResNet(18, base_channels=8, frozen_stages=1, norm_eval=True, norm_cfg=cfg)
    net.train()
    modes = {
        name: m.training
        for name, m in net.named_modules()
        if isinstance(m, SwitchableNorm2d)
    }
    assert len(modes) == 20
    for name, training in modes.items():
        assert training != name.startswith(('sn1', 'layer1.')), name
    assert all(not p.requires_grad for p in net.sn1.parameters())


def test_folding_of_bn_leaves_it_alone():
    module = ConvModule(3, 4, 3, norm_cfg=dict(type='SN'))
    randomize(module.norm)
    module.eval()
    x = torch.randn(2, 3, 5, 5)
    y = module(x)
    assert torch.equal(fuse_conv_bn(module)(x), y)


@pytest.mark.parametrize('shape', [(2, 4), (4, 5, 6), (2, 3, 5, 6), (2, 4, 3, 5, 6)])
def test_bad_input(shape):
    norm = SwitchableNorm2d(4)
    with pytest.raises(ValueError, match=r'expects an input \(N, 4, H, W\), got'):
        norm(torch.randn(shape))
    assert norm.running_mean.abs().max() == 0


def test_repr():
    assert repr(SwitchableNorm2d(4)) == 'SwitchableNorm2d(4, eps=1e-05, momentum=0.1)'
