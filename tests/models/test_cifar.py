import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import NoNorm
from pws_mmdet.models import ConvPoolCNN, PWSCifarResNet

BN = dict(type='BN')
NORMALIZING = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
NETWORKS = [
    lambda **kwargs: PWSCifarResNet(20, base_channels=4, **kwargs),
    lambda **kwargs: ConvPoolCNN(width=0.05, **kwargs),
]


def types(model, *classes):
    return [m for m in model.modules() if isinstance(m, classes)]


def num_weights(model):
    return sum(m.weight.numel() for m in types(model, nn.Conv2d))


@pytest.mark.parametrize('depth', [20, 32, 44, 56, 110])
def test_residual_network_has_its_depth(depth):
    net = PWSCifarResNet(depth, base_channels=2)
    convs = [m for m in types(net, nn.Conv2d) if m.kernel_size == (3, 3)]
    assert len(convs) + 1 == depth, 'with the linear layer'
    strides = [m.stride for m in convs if m.stride != (1, 1)]
    assert strides == [(2, 2)] * 2, 'and none in the stem'


@pytest.mark.parametrize('depth, millions', [(18, 11.2), (34, 21.3)])
def test_four_stages(depth, millions):
    """The convolutions of ResNet-18 and ResNet-34 for ImageNet, with another stem."""
    with torch.device('meta'):
        net = PWSCifarResNet(depth, base_channels=64, pre_activation=True)
        assert num_weights(net) / 1e6 == pytest.approx(millions, abs=0.1)
    convs = [m for m in types(net, nn.Conv2d) if m.kernel_size == (3, 3)]
    assert len(convs) + 1 == depth, 'with the linear layer'
    net = PWSCifarResNet(depth, base_channels=2)
    (y,) = net(torch.randn(2, 3, 30, 33))
    assert y.shape == (2, 16, 4, 5)


def test_residual_network_has_the_papers_size():
    """Table 6 of He et al. 2016: 0.27 M and 0.85 M weights."""
    for depth, millions in ((20, 0.27), (56, 0.85)):
        net = PWSCifarResNet(depth)
        assert num_weights(net) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize('size', [(16, 16), (32, 32), (30, 33)])
def test_shapes(size):
    h, w = (-(-side // 4) for side in size)
    x = torch.randn(2, 3, *size)
    (y,) = PWSCifarResNet(20)(x)
    assert y.shape == (2, 64, h, w)
    (y,) = ConvPoolCNN()(x)
    assert y.shape == (2, 192, h - 2, w - 2)
    assert y.min() == 0, 'the classifier follows a ReLU'


@pytest.mark.parametrize('type_', ['Conv2d', 'Conv', 'mmengine.Conv2d', nn.Conv2d])
def test_plain_convolutions_have_biases_under_every_name(type_):
    init_default_scope('mmdet')
    net = PWSCifarResNet(20, base_channels=2, conv_cfg=dict(type=type_))
    assert all(norm.bias is not None for norm in types(net, NoNorm))
    assert len(types(net, NoNorm)) >= 19


def test_plain_network_has_the_papers_layers():
    net = ConvPoolCNN()
    convs = types(net, nn.Conv2d)
    assert [c.out_channels for c in convs] == [96] * 3 + [192] * 5
    assert [c.kernel_size[0] for c in convs] == [3] * 7 + [1]
    # The original has 1.4 M parameters, with those of the classifier.
    assert num_weights(net) / 1e6 == pytest.approx(1.37, abs=0.05)


def test_linear_layer_and_average_pooling_commute():
    """So the network may end before the 1x1 convolution to the classes."""
    (y,) = ConvPoolCNN(width=0.1)(torch.randn(2, 3, 32, 32))
    conv = nn.Conv2d(y.shape[1], 10, 1)
    scores = conv(y).mean((2, 3))
    linear = nn.functional.linear(y.mean((2, 3)), conv.weight[..., 0, 0], conv.bias)
    torch.testing.assert_close(scores, linear)


@pytest.mark.parametrize('make', NETWORKS, ids=['residual', 'plain'])
class TestBoth:
    def test_default_is_pws_without_norm(self, make):
        net = make()
        assert types(net, nn.Conv2d) == types(net, PWSConv2d)
        assert {conv.gamma for conv in types(net, PWSConv2d)} == {1e-3}
        assert not types(net, *NORMALIZING)

    @pytest.mark.parametrize('conv_cfg', [None, dict(type='Conv2d')])
    def test_plain_control_has_the_biases_of_pws(self, make, conv_cfg):
        net, pws = make(conv_cfg=conv_cfg), make()
        assert not types(net, PWSConv2d, *NORMALIZING)

        def shapes(model):
            pairs = model.named_parameters()
            return sorted(tuple(p.shape) for n, p in pairs if not n.endswith('alpha'))

        assert shapes(net) == shapes(pws)

    @pytest.mark.parametrize(
        'norm', ['BN', 'SN', dict(type='GN', num_groups=1), 'AnySizeIN']
    )
    def test_one_norm_layer_follows_each_convolution(self, make, norm):
        norm_cfg = norm if isinstance(norm, dict) else dict(type=norm)
        net = make(conv_cfg=None, norm_cfg=norm_cfg)
        cls = MODELS.get(norm_cfg['type'])
        assert len(types(net, cls)) == len(types(net, nn.Conv2d))
        assert all(conv.bias is None for conv in types(net, nn.Conv2d))
        assert not types(net, NoNorm)

    @pytest.mark.parametrize(
        'kwargs',
        [
            dict(),
            dict(conv_cfg=None),
            dict(conv_cfg=None, norm_cfg=BN),
            dict(conv_cfg=dict(type='WN', g='trained')),
        ],
        ids=str,
    )
    def test_every_parameter_is_trained(self, make, kwargs):
        net = make(**kwargs)
        net.init_weights()
        net.train()
        (y,) = net(torch.randn(2, 3, 32, 32))
        (y * torch.randn_like(y)).sum().backward()
        unused = [n for n, p in net.named_parameters() if p.grad is None]
        assert not unused

    @pytest.mark.parametrize('kwargs', [dict(), dict(conv_cfg=None)], ids=str)
    def test_starts_from_he_normal(self, make, kwargs):
        """Layers whose fan_in and fan_out are the same, plain convolutions included."""
        net = make(**kwargs)
        net.init_weights()
        same = [c for c in types(net, nn.Conv2d) if c.in_channels == c.out_channels]
        normal = torch.cat(
            [c.weight.flatten() * c.weight[0].numel() ** 0.5 for c in same]
        )
        assert normal.var().item() == pytest.approx(2, rel=0.1)
        assert all(
            p.abs().max() == 0 for n, p in net.named_parameters() if n.endswith('bias')
        )

    @pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', 'mmengine'])
    def test_built_from_a_config_in_every_scope(self, make, scope):
        cls = type(make())
        init_default_scope(scope)
        cfg = dict(type=cls.__name__)
        if cls is PWSCifarResNet:
            cfg.update(depth=20)
        assert type(MODELS.build(cfg)) is cls


def test_norm_layers_of_blocks_start_at_one():
    """No zero_init_residual: rows without norm layers could not have it."""
    net = PWSCifarResNet(20, conv_cfg=None, norm_cfg=BN)
    net.init_weights()
    assert all(norm.weight.min() == 1 for norm in types(net, _BatchNorm))
    net.train()
    assert all(norm.training for norm in types(net, _BatchNorm))


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: PWSCifarResNet(50), r'depth must be one of \(20, 32, .*got 50'),
        (lambda: ConvPoolCNN(width=0.01), 'at least one channel, got 0.01'),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
