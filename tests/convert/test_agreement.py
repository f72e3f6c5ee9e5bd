"""Which layers stay plain, and how good the converted network is."""

import pytest
import torch
from bn_networks import Net, images, relative_error, settle
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert.agreement import compare_outputs
from pws_mmdet.convert.forward import run_model


def separable(kernel=3):
    """A network whose depthwise filters blur, as many trained ones do."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6()]
    for _ in range(2):
        depthwise = nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=16)
        nn.init.uniform_(depthwise.weight, 0, 0.3)
        layers += [depthwise, nn.BatchNorm2d(16), nn.ReLU6()]
        pointwise = nn.Conv2d(16, 16, 1)
        pointwise.weight.data -= 0.9 * pointwise.weight.data.mean(1, keepdim=True)
        layers += [pointwise, nn.BatchNorm2d(16), nn.ReLU6()]
    return settle(nn.Sequential(*layers, nn.Conv2d(16, 5, 1)), images())


@pytest.mark.parametrize('kernel', [3, 5])
def test_layers_that_lose_too_much_stay_plain(kernel):
    net, x = separable(kernel), images(16)
    batches = [images(8) for _ in range(4)]
    new, report = convert_to_pws(net, batches, max_loss=0.3, progress=False)
    everything, lost = convert_to_pws(net, batches, exclude=(), progress=False)
    depthwise = {n for n, m in net.named_modules() if getattr(m, 'groups', 1) > 1}
    kept = {layer.name for layer in report if layer.method == 'kept'}
    assert depthwise <= kept < {layer.name for layer in report}
    for layer in report:
        module = new.get_submodule(layer.name)
        assert type(module) is (nn.Conv2d if layer.name in kept else PWSConv2d)
        assert (layer.loss > 0.3) == (layer.name in kept)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    assert all(isinstance(everything.get_submodule(n), PWSConv2d) for n in kept)
    assert relative_error(new(x), net(x)) < 0.3
    assert relative_error(everything(x), net(x)) > 0.5
    assert report.agreement.error < 0.3 < 0.5 < lost.agreement.error


def test_a_larger_max_loss_converts_more_layers():
    net, batches = separable(), [images(8) for _ in range(2)]
    numbers = []
    for max_loss in (0.0, 0.3, 10.0):
        _, report = convert_to_pws(net, batches, max_loss=max_loss, progress=False)
        numbers.append(sum(layer.method == 'kept' for layer in report))
    assert numbers[0] > numbers[1] > numbers[2] == 0


class Residual(nn.Module):
    """A branch that hardly matters beside what it is added to."""

    def __init__(self, share):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 1)
        nn.init.uniform_(self.conv.weight, 0.5, 1)
        self.share = share

    def forward(self, x):
        return self.conv(x * self.share) + x


def test_a_loss_counts_beside_what_the_output_is_added_to():
    methods = []
    for share in (1.0, 0.01):
        _, report = convert_to_pws(Residual(share), [images(8)], progress=False)
        methods.append(report[0].method)
    assert methods == ['kept', 'fitted']


def test_without_images_layers_whose_filters_have_large_means_stay_plain():
    new, report = convert_to_pws(separable(), progress=False)
    kept = {layer.name for layer in report if layer.method == 'kept'}
    assert {'3', '9'} <= kept
    assert type(new[3]) is nn.Conv2d and new[3].bias is not None
    assert report.agreement is None
    assert 'Without images it is not known how good' in report.summary()


def test_a_kept_layer_makes_up_for_others():
    """It is fitted, too, and not only copied."""
    net = separable()
    options = dict(max_scale=1, progress=False)
    new, _ = convert_to_pws(net, [images(8), images(8)], **options)
    last = max(i for i in (3, 9) if type(new[i]) is nn.Conv2d)
    bn = net[last + 1]
    gain = bn.weight / (bn.running_var + bn.eps).sqrt()
    folded = net[last].weight * gain.view(-1, 1, 1, 1)
    assert not torch.allclose(new[last].weight, folded, rtol=1e-3)


def test_the_summary():
    net = settle(Net(), images())
    _, report = convert_to_pws(net, [images(8)] * 4, exclude=('conv1',), progress=False)
    text = report.summary()
    assert text.startswith('4 convolutions were converted; 1 not, because excluded: ')
    assert 'conv1. On other images, the outputs have a relative error of 0.' in text
    assert str(report).splitlines()[-1] == text
    assert len(str(report).splitlines()) == 6
    _, report = convert_to_pws(net, [images(8)], progress=False)
    assert 'On the same images' in report.summary()


def test_no_image_of_the_last_eighth_is_fitted_to():
    net = settle(Net(), images())
    batches = [images(2) for _ in range(16)]
    other = [*batches[:14], images(2), images(2)]
    one, two = (convert_to_pws(net, x, progress=False) for x in (batches, other))
    for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert one[1].agreement.error != two[1].agreement.error


class Constant(nn.Module):
    """Returns the same outputs for every batch."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def sample(boxes, labels, scores):
    instances = InstanceData(
        bboxes=torch.tensor(boxes).float().view(-1, 4),
        labels=torch.tensor(labels).long(),
        scores=torch.tensor(scores).float(),
    )
    return DetDataSample(pred_instances=instances)


A, B, NEAR_A = [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 8]


@pytest.mark.parametrize(
    'boxes, labels, scores, expected',
    [
        ([A, B], [1, 2], [0.9, 0.8], 1),
        ([NEAR_A, B], [1, 2], [0.9, 0.4], 1),
        ([A, B], [1, 1], [0.9, 0.8], 0.5),
        ([A], [1], [0.9], 2 / 3),
        ([A, B], [1, 2], [0.9, 0.1], 1),  # sure in one network, found in the other
        ([], [], [], 0),
        ([B], [1], [0.9], 0),
    ],
)
def test_detections_that_agree(boxes, labels, scores, expected):
    nets = [
        Constant([sample([A, B], [1, 2], [0.9, 0.8])]),
        Constant([sample(boxes, labels, scores)]),
    ]
    made = compare_outputs(*nets, [torch.zeros(1)], run_model)
    assert made.detections == pytest.approx(expected)
    assert made.is_lost == (expected < 0.1)
    assert f'{100 * expected:.0f} % of the detections agree' == str(made)


def test_outputs_that_agree():
    x = torch.randn(100, 7)
    batch = [torch.zeros(1)]
    same = compare_outputs(Constant(x), Constant(x.clone()), batch, run_model)
    assert (same.error, same.top1, same.is_lost) == (0, 1, False)
    half = x.clone()
    half[::2] = -half[::2]
    made = compare_outputs(Constant(x), Constant(half), batch, run_model)
    assert made.top1 == 0.5 and made.error == pytest.approx(2**0.5, rel=0.1)
    assert made.is_lost
    maps = [x.view(1, 7, 10, 10), x.view(1, 7, 100)]
    near = [maps[0] * 1.1, maps[1] * 1.1]
    made = compare_outputs(Constant(maps), Constant(near), batch, run_model)
    assert made.top1 is None and made.error == pytest.approx(0.1, rel=0.05)
    nothing = compare_outputs(Constant(sample([], [], [])), *nets_of_nothing())
    assert str(nothing) == 'there are no outputs to compare' and not nothing.is_lost
    lost = compare_outputs(Constant(x), Constant(x * float('nan')), batch, run_model)
    assert lost.is_lost


def nets_of_nothing():
    return Constant([sample([], [], [])]), [torch.zeros(1)], run_model
