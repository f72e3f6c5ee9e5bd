import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones.resnet import ResNet
from mmdet.models.backbones.resnext import ResNeXt
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import NoNorm
from pws_mmdet.models import PWSResNet

BN = dict(type='BN')
NORMALIZING = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


def types(model, *classes):
    return [m for m in model.modules() if isinstance(m, classes)]


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_shapes_and_layers(depth):
    net = PWSResNet(depth, base_channels=16)
    outs = net(torch.randn(1, 3, 64, 96))
    expansion = 1 if depth < 50 else 4
    assert [tuple(o.shape) for o in outs] == [
        (1, 16 * expansion * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)
    ]
    assert all(o.min() >= 0 for o in outs), 'every output map passes a ReLU'
    assert types(net, nn.Conv2d) == types(net, PWSConv2d)
    norms = types(net, *NORMALIZING)
    assert norms == [net.norm1]
    assert (norms[0].num_groups, norms[0].num_channels) == (1, 16)
    assert all(conv.bias is not None for conv in types(net, PWSConv2d))


@pytest.mark.parametrize('type_', [NoNorm, 'mmengine.NoNorm'])
def test_no_norm_may_be_a_class_or_have_a_scope(type_):
    init_default_scope('mmdet')
    net = PWSResNet(18, base_channels=8, norm_cfg=dict(type=type_))
    assert [type(m) for m in types(net, *NORMALIZING)] == [nn.GroupNorm]


def test_no_norm_after_the_stem():
    net = PWSResNet(18, stem_norm_cfg=None)
    assert not types(net, *NORMALIZING)
    assert isinstance(net.norm1, NoNorm)


@pytest.mark.parametrize('depth, groups', [(18, 1), (50, 1), (50, 4)])
@pytest.mark.parametrize('norm_cfg', [BN, dict(type='GN', num_groups=4)])
def test_stock_order_is_the_stock_network(depth, groups, norm_cfg):
    """Without pre_activation it computes the same as MMDetection's ResNet."""
    kwargs = dict(depth=depth, base_channels=16, norm_cfg=norm_cfg)
    if groups > 1:
        kwargs.update(groups=groups, base_width=8)
    stock = (ResNet if groups == 1 else ResNeXt)(**kwargs)
    ours = PWSResNet(conv_cfg=None, pre_activation=False, **kwargs)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(stock(x), ours(x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('pre_activation', [True, False])
def test_zero_init_residual_of_controls(pre_activation):
    net = PWSResNet(50, conv_cfg=None, norm_cfg=BN, pre_activation=pre_activation)
    net.init_weights()
    block = net.layer2[1]
    assert block.norm3.weight.abs().max() == 0
    assert block.norm2.weight.min() == 1


def pre_activation_by_hand(net, x):
    """x -> r = relu(x); conv3(relu(conv2(relu(conv1(r))))) + (downsample(r) or x)."""
    x = F.max_pool2d(net.norm1(net.conv1(x)), 3, 2, 1)
    outs = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            r = out = x.relu()
            convs = [block.conv1, block.conv2, getattr(block, 'conv3', None)]
            for conv in filter(None, convs):
                out = conv(out if conv is block.conv1 else out.relu())
            x = out + (x if block.downsample is None else block.downsample(r))
        outs.append(x.relu())
    return outs


@pytest.mark.parametrize('depth', [18, 50])
def test_identity_path_carries_the_sum_before_the_relu(depth):
    net = PWSResNet(depth, base_channels=16)
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(net(x), pre_activation_by_hand(net, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(pre_activation=False),
        dict(deep_stem=True),
        dict(deep_stem=True, pre_activation=False, avg_down=True),
        dict(stem_norm_cfg=None),
        dict(out_norm_cfg=dict(type='GN', num_groups=1)),
        dict(conv_cfg=None, norm_cfg=BN),
        dict(conv_cfg=None, norm_cfg=dict(type='NoNorm', bias=True)),
        dict(depth=50, groups=4),
        dict(out_indices=(1, 3)),
    ],
    ids=str,
)
def test_no_parameter_is_unused(kwargs):
    net = PWSResNet(**{'depth': 18, 'base_channels': 16, 'norm_eval': False, **kwargs})
    outs = net(torch.randn(2, 3, 64, 64))
    assert len(outs) == len(kwargs.get('out_indices', range(4)))
    sum((o * torch.randn_like(o)).sum() for o in outs).backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None]
    assert not unused


def test_plain_control_has_its_bias():
    cfg = dict(type='NoNorm', bias=True)
    net = PWSResNet(18, conv_cfg=None, norm_cfg=cfg, stem_norm_cfg=None)
    assert not types(net, PWSConv2d, *NORMALIZING)
    biases = [n for n, _ in net.named_parameters() if n.endswith('bias')]
    # every convolution of a PWS network has one bias, too
    pws = PWSResNet(18, stem_norm_cfg=None)
    assert len(biases) == len(types(net, nn.Conv2d)) == len(types(pws, nn.Conv2d))


@pytest.mark.parametrize('deep_stem', [True, False])
@pytest.mark.parametrize('frozen_stages', [0, 2])
def test_frozen_stages(deep_stem, frozen_stages):
    net = PWSResNet(
        18, base_channels=16, frozen_stages=frozen_stages, deep_stem=deep_stem
    )
    net.train()
    sum(o.sum() for o in net(torch.randn(1, 3, 64, 64))).backward()
    frozen = ('conv1', 'gn1', 'stem', *(f'layer{i + 1}.' for i in range(frozen_stages)))
    for name, p in net.named_parameters():
        assert p.requires_grad != name.startswith(frozen), name
        assert (p.grad is None) == name.startswith(frozen), name


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('pre_activation', [True, False])
@pytest.mark.parametrize('frozen_stages', [-1, 2])
def test_checkpointing_gives_the_same_gradients(depth, pre_activation, frozen_stages):
    kwargs = dict(
        base_channels=16, pre_activation=pre_activation, frozen_stages=frozen_stages
    )
    net = PWSResNet(depth, **kwargs).double()
    twin = PWSResNet(depth, with_cp=True, **kwargs).double()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for model in (net, twin):
        sum(o.square().sum() for o in model(x.clone())).backward()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        if frozen_stages < 0 or name.startswith(('layer3', 'layer4')):
            assert a.grad.abs().max() > 0, name
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, n=name: f'{n}: {m}')


def test_plugins():
    plugins = [dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv3')]
    net = PWSResNet(50, base_channels=16, plugins=plugins)
    outs = net(torch.randn(1, 3, 64, 64))
    assert outs[-1].shape == (1, 512, 2, 2)


def test_initialization_is_he_normal_and_transmits_variance():
    torch.manual_seed(0)
    net = PWSResNet(50)
    net.init_weights()
    for conv in types(net, PWSConv2d):
        n = conv.weight[0].numel()
        assert conv.weight.var().item() * n == pytest.approx(2, rel=0.1)
    with torch.no_grad():
        outs = net(torch.randn(2, 3, 128, 128))
    assert all(0.2 < o.std() < 10 for o in outs)


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_built_from_a_config_in_every_scope(scope):
    init_default_scope(scope)
    net = MODELS.build(dict(type='PWSResNet', depth=18))
    assert type(net) is PWSResNet


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(depth=18, groups=32), 'groups must be 1 for depth 18'),
        (
            dict(depth=18, pre_activation=False, out_norm_cfg=BN),
            'out_norm_cfg needs pre_activation=True',
        ),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PWSResNet(**kwargs)
