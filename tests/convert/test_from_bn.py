import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws, fuse_pws
from pws_mmdet.convert.calibrate import center_filters, relu_moments, sample_patches
from pws_mmdet.convert.from_bn import fold_batch_norm, set_filters


def settle(model, x):
    """Give BN layers statistics, gains and biases that a training could leave."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = None  # the mean over all batches
            module.reset_running_stats()
    model.train()
    for module in model.modules():  # MMDetection's ResNet may keep them in eval mode
        module.training = True
    with torch.no_grad():
        for part in x.split(8):
            model(part)
    model.eval()
    return model


def pictures(n=32, size=32):
    """Noise of a brightness that differs from picture to picture, blurred."""
    x = torch.randn(n, 3, size + 4, size + 4)
    return 2 * F.avg_pool2d(x, 5, 1) + torch.randn(n, 3, 1, 1)


class Net(nn.Module):
    """Two branches, groups, a stride, a dilation, a 7x7, a 1x1, a shared layer."""

    inplace = False

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.left = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.right = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=2, dilation=2, padding_mode='reflect'),
            nn.BatchNorm2d(12, affine=False),
        )
        self.shared = nn.Conv2d(12, 12, 3, 1, 'same')
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.left(x) + self.right(x))
        for _ in range(2):
            x = F.relu(self.shared(x), self.inplace)
        return self.last(x)


def relative_error(y, expected):
    centered = expected - expected.mean((0, 2, 3), keepdim=True)
    return ((y - expected).norm() / centered.norm()).item()


@pytest.fixture
def net():
    return settle(Net(), pictures())


def test_folding_is_exact(net):
    x = pictures(4)
    plain, layers = fold_batch_norm(net)
    names = {layer.name for layer in layers}
    assert names == {'conv1', 'left.0', 'right.0', 'shared', 'last'}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-5)


def test_statistics_tell_the_mean_of_the_outputs():
    x = pictures()
    plain, layers = fold_batch_norm(settle(Net(), x))
    seen = {}
    for name in ('conv1', 'left.0', 'right.0'):
        plain.get_submodule(name).register_forward_hook(
            lambda m, x, y, n=name: seen.update({n: y.mean((0, 2, 3)) - m.bias})
        )
    plain(x)
    for layer in layers:
        if layer.name in seen:
            # after conv1 a training saw what its batches' own statistics made of it
            atol = 1e-5 if layer.name == 'conv1' else 0.2
            mean = seen[layer.name].double()
            torch.testing.assert_close(mean, layer.mean, rtol=0, atol=atol)


def test_everything_becomes_pws_and_nothing_normalizes(net):
    before = copy.deepcopy(net.state_dict())
    new, report = convert_to_pws(net, [pictures(8)], progress=False)
    convs = [m for m in new.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 5 and all(type(m) is PWSConv2d for m in convs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    assert sorted(layer.name for layer in report) == sorted(
        ['conv1', 'left.0', 'right.0', 'shared', 'last']
    )
    assert not any(m.training for m in new.modules())
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_activations_in_place_change_nothing(net):
    x = pictures(8)
    expected, _ = convert_to_pws(net, [x], progress=False)
    net.inplace = True
    new, _ = convert_to_pws(net, [x], progress=False)
    for key, value in expected.state_dict().items():
        assert torch.equal(new.state_dict()[key], value), key


def test_data_bring_the_outputs_nearer(net):
    x = pictures(16)
    without, _ = convert_to_pws(net, progress=False)
    local, _ = convert_to_pws(net, [pictures()], unaligned=[''], progress=False)
    fitted, _ = convert_to_pws(net, [pictures()], progress=False)
    errors = [relative_error(m(x), net(x)) for m in (without, local, fitted)]
    assert max(errors[1:]) < 0.6 < errors[0]


def test_zero_mean_filters_are_kept():
    """What PWS can represent, it represents: nothing is lost."""
    conv = PWSConv2d(3, 6, 3, padding=1, gamma=1e-2)
    nn.init.uniform_(conv.alpha, 0.5, 2)
    nn.init.normal_(conv.bias)
    net = nn.Sequential(fuse_pws(conv), nn.ReLU(), fuse_pws(PWSConv2d(6, 4, 3)))
    x = pictures(4)
    for batches in (None, [pictures(8)]):
        new, report = convert_to_pws(net, batches, gamma=1e-3, progress=False)
        torch.testing.assert_close(new(x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('options', [{}, dict(gamma=0.1, relative_gamma=True)])
def test_weights_have_he_variance_and_outputs_do_not_depend_on_gamma(net, options):
    x = pictures(4)
    new, _ = convert_to_pws(net, progress=False, **options)
    default, _ = convert_to_pws(net, progress=False)
    torch.testing.assert_close(new(x), default(x), rtol=1e-4, atol=1e-4)
    for conv in (m for m in new.modules() if isinstance(m, PWSConv2d)):
        variance = conv.weight.flatten(1).var(1, correction=0)
        he = torch.full_like(variance, 2 / conv.weight[0].numel())
        torch.testing.assert_close(variance, he, rtol=1e-4, atol=0)


def test_excluded_layers_stay_plain_with_their_bn_in_them(net):
    new, report = convert_to_pws(net, exclude=['^conv1$', 'last'], progress=False)
    assert type(new.conv1) is nn.Conv2d and type(new.last) is nn.Conv2d
    x = pictures(2)
    torch.testing.assert_close(new.bn1(new.conv1(x)), net.bn1(net.conv1(x)))
    assert {layer.name: layer.reason for layer in report if layer.reason} == {
        'conv1': 'excluded',
        'last': 'excluded',
    }


def test_frozen_layers_stay_frozen(net):
    net.left.requires_grad_(False)
    new, _ = convert_to_pws(net, progress=False)
    assert not any(p.requires_grad for p in new.left.parameters())
    assert all(p.requires_grad for p in new.right.parameters())


def test_same_seed_same_weights(net):
    x = [pictures(8)]
    options = dict(max_positions=64, progress=False)
    one, two, other = (
        convert_to_pws(net, x, seed=seed, **options)[0] for seed in (0, 0, 1)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.parameters(), two.parameters(), strict=True)
    )
    assert not torch.equal(one.last.weight, other.last.weight)


def test_patches_are_those_of_the_convolution():
    for conv in (
        nn.Conv2d(4, 6, 3, 2, 1, 2, groups=2),
        nn.Conv2d(4, 6, (1, 3), padding='same', padding_mode='circular'),
        nn.Conv2d(4, 6, 1, 2),
    ):
        x = torch.randn(2, 4, 9, 7)
        y = conv(x).movedim(1, -1).flatten(0, 2)
        index = torch.randperm(len(y))[:11]
        patches = sample_patches(conv, x, index)
        w = conv.weight.reshape(conv.groups, 6 // conv.groups, -1)
        made = torch.einsum('pgn,gon->pgo', patches, w).flatten(1) + conv.bias
        torch.testing.assert_close(made, y[index])


def test_mean_of_the_inputs_from_the_means_of_the_outputs():
    """As many filters as channels, and no padding: the means follow exactly."""
    conv = nn.Conv2d(6, 12, 3).double()
    x = torch.rand(64, 6, 8, 8, dtype=torch.float64) + torch.arange(6).view(6, 1, 1)
    mean = x.mean((0, 2, 3))
    outputs = (conv.weight.sum((2, 3)) * mean).sum(1)
    filters, bias = center_filters(conv.weight.detach(), conv.bias.detach(), outputs)
    made = F.conv2d(mean.view(1, 6, 1, 1).expand(1, 6, 3, 3), filters, bias)
    torch.testing.assert_close(
        made.flatten(), outputs + conv.bias, rtol=1e-2, atol=1e-2
    )


def test_moments_behind_a_relu():
    mean, std = torch.tensor([[0.0, 1.0, -2.0], [1.0, 0.5, 1.0]]).double()
    x = F.relu(mean + std * torch.randn(100_000, 3, dtype=torch.float64))
    first, variance = relu_moments(mean, std)
    torch.testing.assert_close(first, x.mean(0), rtol=0.05, atol=0.005)
    torch.testing.assert_close(variance, x.var(0), rtol=0.1, atol=0.005)


def test_what_is_lost_goes_where_inputs_vary_the_least():
    """And a channel that is constant costs nothing: the bias takes it."""
    conv = nn.Conv2d(4, 9, 1).double()
    mean, variance = torch.rand(2, 4, dtype=torch.float64) + 0.5
    variance[2] = 1e-12
    x = mean + variance.sqrt() * torch.randn(1000, 4, dtype=torch.float64)
    x = x.view(-1, 4, 1, 1)
    outputs = (conv.weight.flatten(1) @ mean).detach()
    filters, bias = center_filters(
        conv.weight.detach(), conv.bias.detach(), outputs, inputs=(mean, variance)
    )
    torch.testing.assert_close(filters.sum((1, 2, 3)), torch.zeros(9).double())
    torch.testing.assert_close(F.conv2d(x, filters, bias), conv(x), rtol=0, atol=1e-2)


def test_filters_of_zeros():
    conv = PWSConv2d(3, 2, 3)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    weight -= weight.mean((1, 2, 3), keepdim=True)
    weight[1] = 0
    set_filters(conv, weight, torch.tensor([1.0, 2.0]))
    plain = fuse_pws(conv)
    torch.testing.assert_close(plain.weight.double(), weight, rtol=1e-5, atol=1e-6)
    assert conv.weight[1].std() > 0


def test_one_conv_for_several_bn_layers_is_kept():
    conv, bns = nn.Conv2d(3, 4, 3), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    net = nn.ModuleList(nn.Sequential(conv, bn) for bn in bns)
    net.append(nn.Conv2d(4, 4, 1))
    new, report = convert_to_pws(net, progress=False)
    assert new[0][0] is new[1][0] and type(new[0][0]) is nn.Conv2d
    assert all(type(new[i][1]) is nn.BatchNorm2d for i in range(2))
    assert report[0].reason == 'its outputs go to 2 BN layers'


def test_resnet_and_detector():
    """A stock ResNet, and heads over several levels, whose inputs follow from it."""
    model = MODELS.build(
        dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
            backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
            neck=dict(
                type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5
            ),
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
                    strides=[4, 8, 16, 32, 64],
                ),
            ),
            test_cfg=dict(
                nms_pre=100, score_thr=0.0, max_per_img=10, nms=dict(iou_threshold=0.5)
            ),
        )
    )
    settle(model.backbone, pictures(16, 64))
    batches = [pictures(4, 64) for _ in range(2)]

    def forward(net, x):
        return net.bbox_head(net.neck(net.backbone(x)))

    new, report = convert_to_pws(model, batches, forward=forward, progress=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    assert {layer.method for layer in report} == {'fitted'}
    assert isinstance(new.bbox_head.cls_convs[0].conv, PWSConv2d)
    assert isinstance(new.backbone.layer2[0].downsample[0], PWSConv2d)
    x = pictures(2, 64)
    without, _ = convert_to_pws(model, progress=False)
    outputs = [forward(net, x)[0][:2] for net in (new, without, model)]  # of two levels
    for fitted, centered, expected in zip(*outputs, strict=True):
        error = relative_error(fitted, expected)
        assert error < 0.8 * relative_error(centered, expected)


def nan_net():
    net = Net()
    net.last.weight.data[0] = float('nan')
    return net


@pytest.mark.parametrize(
    'make, batches, exclude, message',
    [
        (nan_net, None, (), 'last.weight has values that are not finite'),
        (Net, [], (), 'no calibration pictures'),
        (Net, None, ('',), 'nothing to convert: excluded'),
        (lambda: nn.Linear(2, 2), None, (), 'has no nn.Conv2d'),
        (lambda: PWSConv2d(3, 4, 3), None, (), 'has PWS convolutions already'),
    ],
)
def test_bad_input(make, batches, exclude, message):
    with pytest.raises(ValueError, match=message):
        convert_to_pws(make(), batches, exclude, progress=False)


def test_pictures_that_reach_no_layer(net):
    with pytest.raises(ValueError, match='reach no layer'):
        convert_to_pws(net, [1], forward=lambda net, x: None, progress=False)
