import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import FLOAT16
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn
from torch.nn.utils import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from pws_mmdet import PWSConv2d, convert_to_pws, fuse_pws
from pws_mmdet.compat import tree_leaves
from pws_mmdet.convert.calibrate import (
    Calibration,
    Layer,
    _Moments,
    _trace,
    center_filters,
    center_network,
    relu_moments,
    run_model,
    sample_patches,
)
from pws_mmdet.convert.convert import fold_batch_norm, set_filters


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


def images(n=32, size=32):
    """Noise of a brightness that differs from image to image, blurred."""
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
    return settle(Net(), images())


def test_folding_is_exact(net):
    x = images(4)
    plain, layers = fold_batch_norm(net)
    names = {layer.name for layer in layers}
    assert names == {'conv1', 'left.0', 'right.0', 'shared', 'last'}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-5)


def test_statistics_tell_the_mean_of_the_outputs():
    x = images()
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
    new, report = convert_to_pws(net, [images(8)], progress=False)
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
    x = images(8)
    expected, _ = convert_to_pws(net, [x], progress=False)
    net.inplace = True
    new, _ = convert_to_pws(net, [x], progress=False)
    for key, value in expected.state_dict().items():
        assert torch.equal(new.state_dict()[key], value), key


def test_data_bring_the_outputs_nearer(net):
    x = images(16)
    without, _ = convert_to_pws(net, progress=False)
    local, _ = convert_to_pws(net, [images()], unaligned=[''], progress=False)
    fitted, _ = convert_to_pws(net, [images()], progress=False)
    errors = [relative_error(m(x), net(x)) for m in (without, local, fitted)]
    assert max(errors[1:]) < 0.6 < errors[0]


def test_zero_mean_filters_are_kept():
    """What PWS can represent, it represents: nothing is lost."""
    conv = PWSConv2d(3, 6, 3, padding=1, gamma=1e-2)
    nn.init.uniform_(conv.alpha, 0.5, 2)
    nn.init.normal_(conv.bias)
    net = nn.Sequential(fuse_pws(conv), nn.ReLU(), fuse_pws(PWSConv2d(6, 4, 3)))
    x = images(4)
    for batches in (None, [images(8)]):
        new, report = convert_to_pws(net, batches, gamma=1e-3, progress=False)
        torch.testing.assert_close(new(x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('options', [{}, dict(gamma=0.1, relative_gamma=True)])
def test_weights_have_he_variance_and_outputs_do_not_depend_on_gamma(net, options):
    x = images(4)
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
    x = images(2)
    y, expected = new.bn1(new.conv1(x)), net.bn1(net.conv1(x))
    scale = y.flatten(2).norm(dim=(0, 2)) / expected.flatten(2).norm(dim=(0, 2))
    torch.testing.assert_close(y, expected * scale.view(1, -1, 1, 1))
    assert scale.max() > 1.1 * scale.min(), 'so that those who read it lose less'
    assert {layer.name: layer.reason for layer in report if layer.reason} == {
        'conv1': 'excluded',
        'last': 'excluded',
    }


def test_what_reads_an_excluded_layer_gains_from_its_scales(net):
    x = images(16)
    errors = []
    for max_scale in (1.0, 3.0):
        options = dict(exclude=['^conv1$'], max_scale=max_scale, progress=False)
        new, _ = convert_to_pws(net, [images()], **options)
        errors.append(relative_error(new(x), net(x)))
    assert errors[1] < 0.9 * errors[0]


class Sum(nn.Module):
    """Two convolutions of the same inputs, whose outputs are put together."""

    def __init__(self, join):
        super().__init__()
        self.a = nn.Conv2d(4, 6, 1)
        self.b = nn.Conv2d(4, 6, 1)
        self.join = join

    def forward(self, x):
        gain = torch.tensor([4.0, 2.0, 1.0, 0.5]).view(1, -1, 1, 1)
        # the sums of their inputs differ, so that either sees what the other cannot
        return self.join(self.a(x), self.b(x * gain))


JOINS = {
    'sum': lambda a, b: a + b,
    'the other way round': lambda a, b: b + a,
    'in place': lambda a, b: a.add_(b),
    'the other one in place': lambda a, b: b.add_(a),
}


@pytest.mark.parametrize('join', JOINS.values(), ids=JOINS)
def test_what_one_layer_of_a_sum_loses_another_one_makes_up(join):
    x = torch.randn(8, 4, 16, 16) + torch.randn(8, 4, 1, 1)
    errors = []
    for sweeps in (1, 2, 20):
        torch.manual_seed(0)
        net = Sum(join)
        new, _ = convert_to_pws(net, [x], sweeps=sweeps, progress=False)
        errors.append(relative_error(new(x), net(x)))
    assert errors[0] > 1.2 * errors[1] > 10 * errors[2], errors


JOINS_OTHERWISE = {
    'product': lambda a, b: a * b,
    'twice': lambda a, b: torch.add(a, b, alpha=2),
    'with one more use': lambda a, b: (a.relu() + b.relu()) + a,
    'channels': lambda a, b: torch.cat([a, b], 1),
    'broadcast': lambda a, b: a + b[:, :1],
}


@pytest.mark.parametrize('join', JOINS_OTHERWISE.values(), ids=JOINS_OTHERWISE)
def test_what_is_no_sum_of_two_layers_is_fitted_layer_by_layer(join):
    x = torch.randn(8, 4, 16, 16) + torch.randn(8, 4, 1, 1)
    net = Sum(join)
    once, _ = convert_to_pws(net, [x], progress=False)
    apart, _ = convert_to_pws(net.a, [x], max_scale=1, progress=False)
    assert type(apart) is PWSConv2d
    torch.testing.assert_close(once.a(x), apart(x), rtol=1e-4, atol=1e-4)


def test_frozen_layers_stay_frozen(net):
    net.left.requires_grad_(False)
    new, _ = convert_to_pws(net, progress=False)
    assert not any(p.requires_grad for p in new.left.parameters())
    assert all(p.requires_grad for p in new.right.parameters())


def test_same_seed_same_weights(net):
    x = [images(8)]
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


class LivingTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.storages, self.bytes, self.peak = {}, 0, 0

    def forget(self, key):
        self.bytes -= self.storages.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self.storages:
                    self.storages[key] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self.forget, key)
        return out


class Ordered(nn.Module):
    """Layers that are not called in the order in which they are written."""

    def __init__(self, bn_first):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(6)
        self.bn_first = bn_first

    def forward(self, x):
        if self.bn_first:
            return self.conv2(F.relu(self.bn2(F.relu(self.bn1(self.conv1(x))))))
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class PreActivation(nn.Module):
    """conv1 and bn1 are neighbours, and bn1 is called before conv1."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv1 = nn.Conv2d(6, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.conv1(F.relu(self.bn1(x)))


class Tapped(nn.Module):
    """What a convolution puts out goes to BN and somewhere else, too."""

    def __init__(self, tap):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last, self.tap = nn.Conv2d(6, 4, 1), tap

    def forward(self, x):
        y = self.conv(x)
        return self.tap(self, y, self.last(F.relu(self.bn(y))))


class SharedBN(nn.Module):
    def __init__(self, outside=False):
        super().__init__()
        bn = nn.BatchNorm2d(6)
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), bn)
        self.b = nn.Sequential(nn.Conv2d(3, 6, 1), bn)
        self.outside = outside

    def forward(self, x):
        y = F.relu(self.a(x)) + F.relu(self.b(x))
        return self.a[1](y) if self.outside else y


class Crossed(nn.Module):
    """One BN reads two convolutions, one of which another BN reads, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(3)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return F.relu(self.bn1(a)) + F.relu(self.bn1(b)) + F.relu(self.bn2(b))


class BNWithReLU(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


def conv(c_in=6, c_out=6):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def norm_first():
    order = ('norm', 'conv', 'act')
    block = ConvModule(6, 6, 3, norm_cfg=dict(type='BN'), order=order)
    return nn.Sequential(conv(3), nn.ReLU(), block)


def eval_at_once():
    block = ConvModule(3, 6, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    return nn.Sequential(block, conv())


ODD = [
    (lambda: nn.Sequential(conv(3), nn.BatchNorm2d(6), nn.ReLU(), conv()), 0),
    (lambda: nn.Sequential(conv(3), nn.ReLU(), nn.BatchNorm2d(6), conv()), 1),
    (lambda: nn.Sequential(conv(3), nn.ReLU(True), nn.BatchNorm2d(6), conv()), 1),
    (
        lambda: nn.Sequential(
            conv(3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 3), nn.BatchNorm2d(6), conv()
        ),
        1,
    ),
    (lambda: nn.Sequential(conv(3), BNWithReLU(6), conv()), 1),
    (lambda: nn.Sequential(spectral_norm(conv(3)), nn.BatchNorm2d(6), conv()), 1),
    (lambda: Ordered(False), 0),
    (lambda: Ordered(True), 1),
    (PreActivation, 1),
    (norm_first, 1),
    (eval_at_once, 0),
    (SharedBN, 0),
    (lambda: SharedBN(True), 1),
    (Crossed, 2),
    (lambda: Tapped(lambda net, y, z: (z, y)), 1),
    (lambda: Tapped(lambda net, y, z: torch.cat([z, y], 1)), 1),
    (lambda: Tapped(lambda net, y, z: z + y.flatten(2).mean()), 1),
    (lambda: Tapped(lambda net, y, z: z + net.conv.weight.sum()), 1),
    (lambda: Tapped(lambda net, y, z: z + net.bn.bias.sum()), 1),
]


@pytest.mark.parametrize('make, left', ODD)
@torch.no_grad()
def test_bn_is_folded_where_it_is_all_that_reads_a_convolution(make, left):
    x = torch.randn(32, 3, 16, 16)
    net = settle(make(), x)
    expected = net(x)
    plain, _ = fold_batch_norm(net, run=lambda net: net(x))
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    fitted, _ = convert_to_pws(net, [x], progress=False)
    without, _ = convert_to_pws(net, progress=False)
    for new in (plain, fitted, without):
        assert sum(isinstance(m, nn.BatchNorm2d) for m in new.modules()) == left
    if isinstance(expected, torch.Tensor):
        assert relative_error(fitted(x), expected) < 0.6


def test_names_tell_where_no_forward_pass_does():
    """As of a network that does not take noise."""
    nets = dict(
        stock=ResNet(18, base_channels=4, stem_channels=4),
        listed=nn.ModuleList([conv(3), nn.BatchNorm2d(6), conv(), nn.BatchNorm2d(6)]),
        behind=nn.Sequential(conv(3), nn.ReLU(), nn.BatchNorm2d(6)),
        order=Ordered(False),
        first=norm_first(),
        spectral=nn.Sequential(spectral_norm(conv(3)), nn.BatchNorm2d(6)),
    )
    left = {
        name: sum(
            isinstance(m, nn.BatchNorm2d) for m in fold_batch_norm(net)[0].modules()
        )
        for name, net in nets.items()
    }
    assert left == dict(stock=0, listed=0, behind=1, order=2, first=1, spectral=1)


def test_a_network_that_computes_something_else_without_bn_is_refused(net):
    def by_type(left, args, y):
        return y if isinstance(left[1], nn.BatchNorm2d) else 1.1 * y

    net.left.register_forward_hook(by_type)
    with pytest.raises(ValueError, match='it changes what comes to shared'):
        convert_to_pws(net, [images(4)], progress=False)
    with pytest.raises(ValueError, match='it changes what comes to shared'):
        convert_to_pws(net, progress=False)
    convert_to_pws(net, [images(4)], unaligned=['shared'], progress=False)


@pytest.mark.parametrize('dtype', [torch.bfloat16, FLOAT16, torch.float64])
def test_other_precisions(net, dtype):
    x = images()
    expected = relative_error(convert_to_pws(net, [x], progress=False)[0](x), net(x))
    new, report = convert_to_pws(net.to(dtype), [x.to(dtype)], progress=False)
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert {layer.method for layer in report} == {'fitted'}
    made = relative_error(new(x.to(dtype)).double(), net(x.to(dtype)).double())
    # in half precision no channels are scaled
    assert made < (2 if dtype != torch.float64 else 1.1) * expected


class Levels(nn.Module):
    """A head over three levels, and one over regions, three of each image."""

    def __init__(self):
        super().__init__()
        self.head, self.of_regions = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

    def forward(self, x):
        for size in (12, 9, 6):
            self.head(x[..., :size, :size])
        if len(x) != 4:  # no proposals
            self.of_regions(x.repeat_interleave(3, 0))


@pytest.mark.parametrize('sizes', [[3, 3, 3], [5], [1, 1], [4, 3, 4, 2], [1, 2, 3]])
def test_halves_share_no_image(monkeypatch, sizes):
    seen = {}

    def add(moments, x, y):
        values = seen.setdefault(len(seen), set())
        values |= set(x.unique().tolist())

    batches = list(torch.arange(1.0, 1 + sum(sizes)).view(-1, 1, 1, 1).split(sizes))
    batches = [x.expand(-1, 1, 12, 12).contiguous() for x in batches]
    net = Levels()
    monkeypatch.setattr(_Moments, 'add', add)
    calibration = Calibration(net, batches, run_model, 2**15, 0)
    calls, _ = _trace(net, batches, run_model, [Layer('head'), Layer('of_regions')])
    for name in calls:
        seen.clear()
        calibration._moments(name, calls[name], net, None)
        halves = [set().union(*(seen[i] for i in seen if i % 2 == k)) for k in (0, 1)]
        # regions of a single batch are told apart by their order alone
        shared = 1 if name == 'of_regions' and len(sizes) == 1 else 0
        assert all(halves) and len(halves[0] & halves[1]) <= shared


def test_memory_does_not_grow_with_the_images():
    """A few matrices of n x n are all that it takes, whatever the images."""
    n = 64 * 9
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()).eval()
    peaks = {}
    for number in (2, 8):
        batches = [torch.randn(1, 64, 8, 8) for _ in range(number)]
        with LivingTensors() as living, torch.no_grad():
            center_network(net, [Layer('0')], batches, progress=False)
        peaks[number] = living.peak
    assert peaks[8] < 1.05 * peaks[2]
    most = 16 if torch.__version__ >= '2.2' else 20  # matrices; torch 2.1 needs more
    assert 2 * n * n * 8 < peaks[2] < most * n * n * 8


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
    settle(model.backbone, images(16, 64))
    batches = [images(4, 64) for _ in range(2)]

    def forward(net, x):
        return net.bbox_head(net.neck(net.backbone(x)))

    new, report = convert_to_pws(model, batches, forward=forward, progress=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    assert {layer.method for layer in report} == {'fitted'}
    assert isinstance(new.bbox_head.cls_convs[0].conv, PWSConv2d)
    assert isinstance(new.backbone.layer2[0].downsample[0], PWSConv2d)
    x = images(2, 64)
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
        (Net, [], (), 'no calibration images'),
        (Net, [torch.full((1, 3, 32, 32), torch.nan)], (), 'images have values that'),
        (Net, None, ('',), 'nothing to convert: excluded'),
        (lambda: nn.Linear(2, 2), None, (), 'has no nn.Conv2d'),
        (lambda: PWSConv2d(3, 4, 3), None, (), 'has PWS convolutions already'),
    ],
)
def test_bad_input(make, batches, exclude, message):
    with pytest.raises(ValueError, match=message):
        convert_to_pws(make(), batches, exclude, progress=False)


@pytest.mark.parametrize('option', ['max_scale', 'sweeps'])
def test_numbers_below_one(net, option):
    with pytest.raises(ValueError, match=f'{option} must be 1 or more, got 0'):
        convert_to_pws(net, **{option: 0})


def test_images_that_reach_no_layer(net):
    with pytest.raises(ValueError, match='reach no layer'):
        convert_to_pws(net, [1], forward=lambda net, x: None, progress=False)


def test_other_convolutions_and_norms_stay_and_are_named():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.GroupNorm(2, 4),
    )
    made, report = convert_to_pws(net, progress=False)
    assert isinstance(made[0], PWSConv2d)
    assert str(report[-1]) == '3: kept (it is a ConvTranspose2d)' and len(report) == 2
    assert type(made[3]) is nn.ConvTranspose2d and type(made[4]) is nn.GroupNorm
