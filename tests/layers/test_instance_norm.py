import copy
import pickle

import pytest
import torch
from conftest import FLOAT16
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.registry import init_default_scope
from torch import nn

from pws_mmdet.layers import AnySizeInstanceNorm2d


def randomize(norm):
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p))
    return norm


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('track', [True, False])
@pytest.mark.parametrize('shape', [(2, 4, 5, 6), (2, 4, 1, 2), (2, 4, 2, 1), (4, 3, 3)])
def test_is_the_norm_of_torch(shape, track, training):
    norm = randomize(AnySizeInstanceNorm2d(4, track_running_stats=track))
    torchs = nn.InstanceNorm2d(4, affine=True, track_running_stats=track)
    torchs.load_state_dict(norm.state_dict())
    grads = []
    x = torch.randn(shape)
    for layer in (norm.train(training), torchs.train(training)):
        z = x.clone().requires_grad_()
        y = layer(z)
        y.square().sum().backward()
        grads.append([y, z.grad, layer.weight.grad, layer.bias.grad, *layer.buffers()])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, FLOAT16, torch.bfloat16])
def test_a_map_of_one_value_becomes_the_bias(dtype, training):
    norm = randomize(AnySizeInstanceNorm2d(4)).to(dtype).train(training)
    x = (torch.randn(3, 4, 1, 1) * 1e3).to(dtype).requires_grad_()
    y = norm(x)
    assert y.dtype == dtype
    assert torch.equal(y, norm.bias.view(4, 1, 1).expand_as(y))
    y.square().sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.abs().max() == 0
    assert norm.weight.grad.abs().max() == 0
    torch.testing.assert_close(norm.bias.grad, 6 * norm.bias)
    torch.testing.assert_close(norm(x[0]), y[0])  # without a batch axis


def test_running_statistics_need_more_than_one_value():
    norm = AnySizeInstanceNorm2d(2, track_running_stats=True)
    x = torch.randn(3, 2, 1, 1)
    with pytest.raises(ValueError, match='more than 1 spatial element'):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), x / (1 + norm.eps) ** 0.5)


def test_gradcheck():
    norm = randomize(AnySizeInstanceNorm2d(3, dtype=torch.float64))
    for size in (1, 3):
        x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(norm, (x,))


def test_autocast_bf16():
    x = torch.randn(2, 4, 1, 1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(AnySizeInstanceNorm2d(4)(x), torch.zeros_like(x))


def test_wrong_input_is_refused_at_any_size():
    norm = AnySizeInstanceNorm2d(4)
    for size in (1, 2):
        with pytest.raises(ValueError, match='match num_features'):
            norm(torch.randn(2, 3, size, size))
        with pytest.raises(ValueError, match='3D or 4D'):
            norm(torch.randn(1, 2, 4, size, size))


def test_affine_by_default():
    assert list(AnySizeInstanceNorm2d(4).state_dict()) == ['weight', 'bias']
    norm = AnySizeInstanceNorm2d(4, affine=False)
    assert not list(norm.parameters())
    assert norm(torch.randn(2, 4, 1, 1)).abs().max() == 0


def test_copies():
    norm = randomize(AnySizeInstanceNorm2d(4))
    loaded = AnySizeInstanceNorm2d(4)
    loaded.load_state_dict(norm.state_dict())
    x = torch.randn(2, 4, 3, 3)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), loaded):
        assert torch.equal(twin(x), norm(x))


@pytest.mark.parametrize('name', ['AnySizeIN', 'AnySizeInstanceNorm2d'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_built_from_a_norm_cfg(name, scope):
    init_default_scope(scope)
    cfg = dict(type=name, eps=1e-3, requires_grad=False)
    attribute, norm = build_norm_layer(cfg, 16, postfix=1)
    assert attribute == 'in1'
    assert type(norm) is AnySizeInstanceNorm2d
    assert norm.eps == 1e-3
    assert not norm.weight.requires_grad
    module = ConvModule(3, 16, 3, stride=2, norm_cfg=cfg)
    assert module(torch.randn(1, 3, 3, 3)).shape == (1, 16, 1, 1)
