"""Forward passes of several batches that go on together."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pws_mmdet.convert import convert_to_pws
from pws_mmdet.convert.forward import run_model
from pws_mmdet.convert.lockstep import LockStep, next_layer

OPTIONS = dict(exclude=(), progress=False)


def chain(depth):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def test_all_passes_stop_at_each_layer_before_its_output_is_used():
    net = chain(3)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(4)]
    seen = []
    with LockStep(run_model, 4) as step:
        passes = step.start(net, batches, ['0', '2', '4'])
        while (name := next_layer(passes)) is not None:
            seen.append(name)
            for one, x in zip(passes, batches, strict=True):
                assert one.call.name == name
                if name == '0':
                    assert one.call.x is x
                expected = net.get_submodule(name)(one.call.x)
                torch.testing.assert_close(one.call.y, expected)
                one.call.y.fill_(-1.0)  # so that the next layer gets zeros
                one.call = None
            if name != '0':
                assert all(one.call is None for one in passes)
    assert seen == ['0', '2', '4']
    assert all(one.ended for one in passes)


def test_new_outputs_reach_what_follows():
    net = chain(2)
    x = torch.randn(1, 3, 8, 8)
    with LockStep(run_model, 1) as step:
        (one,) = step.start(net, [x], ['0', '2'])
        assert next_layer([one]) == '0'
        one.call.y.fill_(5.0)
        one.call = None
        assert next_layer([one]) == '2'
        assert (one.call.x == 5).all()


@pytest.mark.parametrize('where', ['forward', 'while others wait'])
def test_an_error_ends_all_passes(where):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x) + 1
            if x.max() > 9:
                raise KeyError('a network may raise anything')
            return y

    before = threading.active_count()
    batches = [torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)]
    if where == 'forward':
        batches[1] += 9.5
    with pytest.raises(KeyError), LockStep(run_model, 2) as step:
        passes = step.start(Broken(), batches, ['conv'])
        next_layer(passes)
        if where != 'forward':
            raise KeyError
        for one in passes:
            one.call = None
        next_layer(passes)
    assert threading.active_count() == before


@pytest.mark.parametrize('number', [2, 4])
def test_the_number_of_forward_passes_does_not_grow_with_the_depth(number):
    counts = {}
    for depth in (3, 9):
        passes = []

        def forward(net, x, passes=passes):
            passes.append(len(x))
            return net(x)

        batches = [torch.randn(2, 3, 16, 16) for _ in range(number)]
        _, report = convert_to_pws(chain(depth), batches, forward=forward, **OPTIONS)
        assert {layer.method for layer in report} == {'fitted'}
        counts[depth] = passes.count(2)
    assert counts[3] == counts[9]


class InPlace(nn.Module):
    """The input of a convolution is overwritten before its output is used."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.in_place = in_place

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        return (x.relu_() if self.in_place else F.relu(x)) + y


def test_inputs_that_are_overwritten():
    x = [torch.randn(2, 3, 12, 12) for _ in range(2)]
    one, other = (
        convert_to_pws(InPlace(in_place), x, **OPTIONS)[0] for in_place in (0, 1)
    )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class AnyOrder(nn.Module):
    """Which layers are called, and in which order, depends on the images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        if x.max() > 19:
            return self.c(F.relu(self.a(x)))
        if x.max() > 9:
            return self.a(F.relu(self.b(x)))
        return self.b(F.relu(self.a(x)))


def test_batches_that_call_layers_in_another_order():
    base = torch.randn(3, 2, 3, 12, 12)
    batches = [x + 10 * i for i, x in enumerate(base)] + [base[0] + 0.1]
    batches = [
        x.clamp(10 * (i % 3) - 9, 10 * (i % 3) + 9) for i, x in enumerate(batches)
    ]
    batches[1][0, 0, 0, 0], batches[2][0, 0, 0, 0] = 15, 25
    net = AnyOrder().eval()
    new, report = convert_to_pws(net, batches[:3], **OPTIONS)
    assert sorted(layer.name for layer in report) == ['a', 'b', 'c']
    assert all(layer.error is not None for layer in report)
    for x in batches:
        assert new(x).isfinite().all()
