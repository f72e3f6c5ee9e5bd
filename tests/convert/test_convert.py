"""Tests of convert_to_pws: the converted network computes the same, and trains."""

import copy

import pytest
import torch
import torch.nn.functional as F
from bn_networks import Net, check_same, images, settle
from conftest import FLOAT16
from mmdet.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws, fuse_pws
from pws_mmdet.convert.convert import WEIGHT_SCALE, set_filters


@pytest.fixture
def net():
    return settle(Net(), images())


@pytest.mark.parametrize('batches', [None, [images(8)]])
def test_the_network_computes_the_same_without_bn(net, batches):
    before = copy.deepcopy(net.state_dict())
    new, report = convert_to_pws(net, batches)
    convs = [m for m in new.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 5 and all(type(m) is PWSConv2d for m in convs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    check_same(new, net, images(4))
    check_same(fuse_pws(new), net, images(4))
    assert sorted(map(str, report)) == [
        f'{name}: converted'
        for name in ('conv1', 'last', 'left.0', 'right.0', 'shared')
    ]
    assert str(report).endswith('\n5 convolutions were converted')
    assert not any(m.training for m in new.modules())
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_in_place_activations_give_the_same_filters(net):
    expected, _ = convert_to_pws(net)
    net.inplace = True
    new, _ = convert_to_pws(net)
    for key, value in expected.state_dict().items():
        assert torch.equal(new.state_dict()[key], value), key


@pytest.mark.parametrize('options', [{}, dict(gamma=0.1, relative_gamma=True)])
def test_weights_have_the_same_variance_for_any_gamma(net, options):
    new, _ = convert_to_pws(net, **options)
    check_same(new, net, images(4))
    for conv in (m for m in new.modules() if isinstance(m, PWSConv2d)):
        variance = conv.weight.flatten(1).var(1, correction=0)
        wanted = WEIGHT_SCALE**2 * 2 / conv.weight[0].numel()
        torch.testing.assert_close(
            variance, torch.full_like(variance, wanted), rtol=1e-4, atol=0
        )


def test_the_means_are_constants_and_gradients_have_zero_mean(net):
    new, _ = convert_to_pws(net)
    conv, plain = new.conv1, fuse_pws(new).conv1
    torch.testing.assert_close(conv.mean, plain.weight.flatten(1).mean(1))
    assert conv.mean.abs().max() > 1e-3
    new.train()(images(4)).square().sum().backward()
    assert 'mean' not in dict(conv.named_parameters())
    grad = conv.weight.grad.flatten(1)
    assert grad.sum(1).abs().max() < 1e-4 * grad.abs().sum(1).max()


def test_excluded_layers_stay_plain_with_bn_folded(net):
    new, report = convert_to_pws(net, exclude=['^conv1$', 'last'])
    assert type(new.conv1) is nn.Conv2d and type(new.last) is nn.Conv2d
    x = images(2)
    torch.testing.assert_close(new.bn1(new.conv1(x)), net.bn1(net.conv1(x)))
    check_same(new, net, x)
    assert {layer.name: layer.kept for layer in report if layer.kept} == {
        'conv1': 'excluded',
        'last': 'excluded',
    }
    assert '2 not, because excluded: conv1, last' in report.summary()


def test_frozen_layers_stay_frozen(net):
    net.left.requires_grad_(False)
    new, _ = convert_to_pws(net)
    assert not any(p.requires_grad for p in new.left.parameters())
    assert all(p.requires_grad for p in new.right.parameters())


def test_a_filter_of_equal_weights_gets_a_weight_from_the_seed():
    conv, again, other = (PWSConv2d(3, 3, 3, keep_mean=True) for _ in range(3))
    weight = torch.randn(3, 3, 3, 3)
    weight[1], weight[2] = 0, 0.1
    for made, seed in ((conv, 7), (again, 7), (other, 8)):
        generator = torch.Generator().manual_seed(seed)
        set_filters(made, weight, torch.tensor([1.0, 2.0, 3.0]), generator)
    plain = fuse_pws(conv)
    torch.testing.assert_close(plain.weight, weight, rtol=1e-5, atol=1e-6)
    assert conv.alpha[1:].tolist() == [0, 0] and conv.weight[1].std() > 0
    assert torch.equal(conv.weight, again.weight)
    assert not torch.equal(conv.weight[1], other.weight[1])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(keep_mean=False), 'keep_mean=True'),
        (dict(alpha='layer'), "alpha must be 'channel'"),
        (dict(beta=False), 'beta must be True'),
    ],
)
def test_layers_that_cannot_hold_filters(options, message):
    conv = PWSConv2d(3, 2, 3, **{'keep_mean': True, **options})
    with pytest.raises(ValueError, match=message):
        set_filters(conv, torch.randn(2, 3, 3, 3), torch.zeros(2), torch.Generator())


def test_a_convolution_that_several_bn_layers_read_is_kept():
    conv, bns = nn.Conv2d(3, 4, 3), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    net = nn.ModuleList(nn.Sequential(conv, bn) for bn in bns)
    net.append(nn.Conv2d(4, 4, 1))

    def forward(net, x):
        return net[2](net[0](x)) + net[1](x)

    new, report = convert_to_pws(net, forward=forward)
    assert new[0][0] is new[1][0] and type(new[0][0]) is nn.Conv2d
    assert all(type(new[i][1]) is nn.BatchNorm2d for i in range(2))
    assert report[0].kept == 'its outputs go to 2 BN layers'


@pytest.mark.parametrize('dtype', [torch.bfloat16, FLOAT16, torch.float64])
def test_other_dtypes(net, dtype):
    x = images(4)
    new, _ = convert_to_pws(net.to(dtype), [x.to(dtype)])
    assert {p.dtype for p in new.parameters()} == {dtype}
    tolerance = 1e-6 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    check_same(new, net, x.to(dtype), tolerance)


def test_a_detector():
    """RetinaNet: a ResNet, and heads that are called once for each level."""
    model = MODELS.build(
        dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                stem_channels=8,
                num_stages=2,
                strides=(1, 2),
                dilations=(1, 1),
                out_indices=(0, 1),
            ),
            neck=dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=3),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=3,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(
                    type='AnchorGenerator',
                    ratios=[1.0],
                    scales=[4],
                    strides=[4, 8, 16],
                ),
            ),
            test_cfg=dict(
                nms_pre=100, score_thr=0.0, max_per_img=10, nms=dict(iou_threshold=0.5)
            ),
        )
    )
    settle(model.backbone, images(16, 64))
    model.eval()

    def forward(net, x):
        return net.bbox_head(net.neck(net.backbone(x)))

    new, report = convert_to_pws(model, forward=forward)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    assert not any(layer.kept or layer.reason for layer in report)
    assert isinstance(new.bbox_head.cls_convs[0].conv, PWSConv2d)
    assert isinstance(new.backbone.layer2[0].downsample[0], PWSConv2d)
    x = images(2, 64)
    with torch.no_grad():
        for made, expected in zip(forward(new, x), forward(model, x), strict=True):
            for one, other in zip(made, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def nan_net():
    net = Net()
    net.last.weight.data[0] = float('nan')
    return net


@pytest.mark.parametrize(
    'make, batches, exclude, message',
    [
        (nan_net, None, (), 'NaN or infinity in last.weight'),
        (Net, [], (), 'no batches'),
        (Net, None, ('',), 'nothing to convert: excluded'),
        (Net, None, ('conv2',), "no convolution has 'conv2' in its name"),
        (Net, None, ('(',), r"exclude: '\(': "),
        (Net, None, 'conv1', r"a list of patterns, as \['conv1'\]"),
        (Net, images(1), (), r'a list of batches, such as \[batch\]'),
        (lambda: nn.Linear(2, 2), None, (), 'has no nn.Conv2d'),
        (lambda: PWSConv2d(3, 4, 3), None, (), 'has PWS convolutions already'),
    ],
)
def test_bad_input(make, batches, exclude, message):
    with pytest.raises(ValueError, match=message):
        convert_to_pws(make(), batches, exclude)


def test_something_else_than_a_network():
    with pytest.raises(TypeError, match='must be an nn.Module, not str'):
        convert_to_pws('resnet50')


def test_weights_with_bn_do_not_load_any_more(net):
    new, _ = convert_to_pws(net)
    for strict in (True, False):
        with pytest.raises(ValueError, match='weights of a network with BN'):
            new.load_state_dict(net.state_dict(), strict=strict)
    new.load_state_dict(copy.deepcopy(new.state_dict()))


class Focus(nn.Module):
    """The first convolution gets four times the channels of the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(12, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        assert x.shape[1] == 3
        return self.bn(self.conv(F.pixel_unshuffle(x, 2)))


def test_noise_has_the_channels_of_an_image():
    net = settle(Focus(), images(4))
    new, report = convert_to_pws(net)
    assert isinstance(new.conv, PWSConv2d) and not report.norms
    check_same(new, net, images(2))


class Unfinished(nn.Module):
    """A network whose head does not take noise."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 1)

    def forward(self, x, wanted=None):
        y = self.norm(self.conv(x))
        return self.head(y * wanted)


def test_a_warning_only_where_bn_stays(messages):
    assert not convert_to_pws(Unfinished(nn.ReLU()))[1].norms
    assert not messages
    net = Unfinished(nn.BatchNorm2d(4)).eval()
    net.head = nn.Sequential(net.head, nn.BatchNorm2d(4))
    _, report = convert_to_pws(net)
    assert any('Give batches that reach all layers' in text for text in messages)
    assert report.norms == ['head.1 (BatchNorm2d)']


def test_other_convolutions_and_norms_stay_and_are_reported():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.GroupNorm(2, 4),
    )
    made, report = convert_to_pws(net)
    assert isinstance(made[0], PWSConv2d)
    reason = 'it is a ConvTranspose2d, and PWS can replace an nn.Conv2d only'
    assert str(report[-1]) == f'3: stays ({reason})' and len(report) == 2
    assert type(made[3]) is nn.ConvTranspose2d and type(made[4]) is nn.GroupNorm
    assert report.norms == ['4 (GroupNorm)']
    assert report.summary().endswith('; 1 layer still normalizes: 4 (GroupNorm)')


class Gated(nn.Module):
    """Depthwise convolutions, and a gate behind pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        )
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = F.relu6(self.depthwise(F.silu(self.stem(x))))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return self.last(x * gate.sigmoid())


def dead(net, kind):
    """Make inputs of layers constant, or weights zero."""
    stem = net.stem[1]
    if kind == 'dead channel':
        nn.init.zeros_(stem.weight)
        nn.init.constant_(stem.bias, -1)
    elif kind == 'channel without variance':
        stem.running_var[2] = 0
    elif kind == 'filter of zeros':
        for conv in (net.stem[0], net.depthwise[0], net.down, net.last):
            conv.weight.data[1] = 0
    elif kind == 'layer of zeros':
        nn.init.zeros_(net.down.weight)


KINDS = 'none', 'dead channel', 'channel without variance', 'filter of zeros'


@pytest.mark.parametrize('kind', [*KINDS, 'layer of zeros'])
def test_depthwise_layers_gates_and_dead_channels(kind):
    net = settle(Gated(), images(16))
    dead(net, kind)
    new, report = convert_to_pws(net)
    assert all(value.isfinite().all() for value in new.state_dict().values())
    assert not any(layer.kept for layer in report)
    check_same(new, net, images(3))
    new.train()(images(2)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in new.parameters())
