"""The NF-ResNet: the signal that its constants promise, and what is trained."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import fuse_pws
from pws_mmdet.layers import ScaledWSConv2d
from pws_mmdet.models import NFCifarResNet, PWSCifarResNet


def blocks_of(net):
    return [block for name in net.res_layers for block in getattr(net, name)]


def set_skip_gains(net, value):
    for block in blocks_of(net):
        nn.init.constant_(block.skip_gain, value)


def test_constants_are_those_of_the_calculation():
    net = NFCifarResNet(20, base_channels=2, skip_scale=0.5)
    variances = [block.std**2 for block in blocks_of(net)]
    # The first stage keeps its shape. The others start with a convolution in the
    # shortcut, whose output has the variance 1.
    expected = [1, 1.25, 1.5, 1.75, 1.25, 1.5, 1.75, 1.25, 1.5]
    assert variances == pytest.approx(expected)
    assert all(block.skip_scale == 0.5 for block in blocks_of(net))


def test_the_signal_has_the_calculated_variance():
    """With every branch switched on, at the start, in the mean of the channels."""
    torch.manual_seed(0)
    net = NFCifarResNet(20, base_channels=32)
    net.init_weights()
    set_skip_gains(net, 1.0)
    net.conv1 = nn.Identity()
    seen = []
    for block in blocks_of(net):
        block.register_forward_pre_hook(lambda m, x: seen.append((m.std, x[0])))
    with torch.no_grad():
        net(torch.randn(4, 32, 16, 16))
    assert len(seen) == 9
    for std, x in seen:
        assert x.std().item() == pytest.approx(std, rel=0.25)


def test_blocks_compute_the_formula():
    net = NFCifarResNet(20, base_channels=2).double()
    set_skip_gains(net, 0.7)
    for block in (blocks_of(net)[1], blocks_of(net)[3]):
        x = torch.randn(1, block.conv1.in_channels, 6, 6, dtype=torch.float64)
        inner = F.relu(x) / block.std
        branch = block.conv2(F.relu(block.conv1(inner)))
        shortcut = x if block.downsample is None else block.downsample(inner)
        torch.testing.assert_close(block(x), shortcut + 0.2 * 0.7 * branch)
    assert blocks_of(net)[3].downsample is not None


@pytest.mark.parametrize('options', [dict(), dict(skip_init=1.0)])
def test_a_block_starts_as_its_shortcut_or_not(options):
    net = NFCifarResNet(20, base_channels=2, **options)
    net.init_weights()
    gain = options.get('skip_init', 0.0)
    assert {block.skip_gain.item() for block in blocks_of(net)} == {gain}
    block, x = blocks_of(net)[1], torch.randn(1, 2, 6, 6)
    assert torch.equal(block(x), x) == (gain == 0)


def test_the_last_relu_has_its_gain():
    net = NFCifarResNet(20, base_channels=2)
    x = torch.randn(1, 3, 8, 8)
    y = net.conv1(x)
    for block in blocks_of(net):
        y = block(y)
    gain = math.sqrt(2 / (1 - 1 / math.pi))
    torch.testing.assert_close(net(x)[0], gain * y.relu())


def test_has_the_layers_of_the_other_rows_and_no_norm():
    nf, pws = NFCifarResNet(20, base_channels=2), PWSCifarResNet(20, base_channels=2)

    def convolutions(net):
        return [m for m in net.modules() if isinstance(m, nn.Conv2d)]

    made = convolutions(nf)
    assert [c.weight.shape for c in made] == [c.weight.shape for c in convolutions(pws)]
    assert all(type(c) is ScaledWSConv2d for c in made)
    assert all(c.bias is not None for c in made)
    gain = math.sqrt(2 / (1 - 1 / math.pi))
    assert [c.activation_gain for c in made] == [1.0] + [gain] * (len(made) - 1)
    norms = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    assert not [m for m in nf.modules() if isinstance(m, norms)]
    (y,) = nf(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 8, 8, 8) and y.min() == 0


def test_every_parameter_is_trained_and_gradients_are_exact():
    net = NFCifarResNet(20, base_channels=2, skip_scale=0.3).double()
    twin = NFCifarResNet(20, base_channels=2, skip_scale=0.3, with_cp=True).double()
    set_skip_gains(net, 0.5)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for model in (net, twin):
        x.grad = None
        (y,) = model(x.requires_grad_())  # in training mode from the start
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and p.grad.abs().max() > 0, name
        torch.testing.assert_close(p.grad, q.grad)


def test_fused_it_computes_the_same():
    net = NFCifarResNet(20, base_channels=2).double()
    net.eval()
    set_skip_gains(net, 0.5)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused = fuse_pws(net)
    assert not [m for m in fused.modules() if isinstance(m, ScaledWSConv2d)]
    torch.testing.assert_close(fused(x)[0], net(x)[0])


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_built_from_a_config_in_every_scope(scope):
    init_default_scope(scope)
    cfg = dict(type='NFCifarResNet', depth=20, base_channels=2)
    net = MODELS.build(dict(cfg, conv_cfg=dict(type='ScaledWS', eps=1e-5)))
    assert type(net) is NFCifarResNet
    assert {m.eps for m in net.modules() if isinstance(m, ScaledWSConv2d)} == {1e-5}
    with pytest.raises(ValueError, match='depth must be one of'):
        NFCifarResNet(50)
