import copy

import pytest
import torch
from test_from_bn import Net, pictures, relative_error, settle
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert.calibrate import run_model
from pws_mmdet.convert.polish import polish


def test_it_finds_the_factors_and_offsets_that_were_lost():
    """Through ReLUs that work in place, and a layer that is called twice."""
    shared = nn.Conv2d(6, 6, 3, padding=1)
    original = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(True), shared, nn.ReLU(True), shared
    )
    changed = copy.deepcopy(original)
    factors = {'0': torch.empty(6).uniform_(0.9, 1.1), '2': torch.tensor(6 * [0.9])}
    offsets = {'0': torch.empty(6).uniform_(-0.1, 0.1), '2': torch.tensor(6 * [0.05])}
    with torch.no_grad():
        for name, factor in factors.items():
            conv = changed.get_submodule(name)
            conv.bias.sub_(offsets[name]).div_(factor)
            conv.weight.div_(factor.view(-1, 1, 1, 1))
    changed.requires_grad_(False)
    before = copy.deepcopy(changed.state_dict())
    found = polish(
        changed,
        original,
        ['0', '2'],
        ['0', '2'],
        [pictures(8) for _ in range(4)],
        forward=run_model,
        steps=500,
        lr=3e-2,
        progress=False,
    )
    for name, (factor, offset) in found.items():
        torch.testing.assert_close(factor, factors[name], rtol=0, atol=5e-3)
        torch.testing.assert_close(offset, offsets[name], rtol=0, atol=5e-3)
    assert all(torch.equal(v, before[k]) for k, v in changed.state_dict().items())
    assert not any(m._forward_hooks for m in changed.modules())


def test_converted_networks_come_nearer():
    net = settle(Net(), pictures(64))
    batches = [pictures(16) for _ in range(4)]
    fitted, polished, again = (
        convert_to_pws(net, batches, polish_steps=steps, progress=False)[0]
        for steps in (0, 150, 150)
    )
    x = pictures(32)
    with torch.no_grad():
        wanted = net(x)
        errors = [relative_error(m(x), wanted) for m in (fitted, polished, again)]
    assert errors[1] < errors[0]
    assert errors[1] == errors[2]
    convs = [m for m in polished.modules() if isinstance(m, PWSConv2d)]
    assert len(convs) == 5


def test_layers_whose_inputs_do_not_correspond_are_left_alone():
    net = settle(Net(), pictures())
    options = dict(unaligned=['shared', 'last'], progress=False)
    batches = [pictures(8)]
    one, _ = convert_to_pws(net, batches, **options)
    two, _ = convert_to_pws(net, batches, polish_steps=5, **options)
    changed = {
        name.rpartition('.')[0]
        for name, value in one.state_dict().items()
        if not torch.equal(value, two.state_dict()[name])
    }
    assert changed == {'conv1', 'left.0', 'right.0'}


@pytest.mark.parametrize('batches, steps', [(None, 5), ([pictures(2)], -1)])
def test_bad_input(batches, steps):
    with pytest.raises(ValueError, match='polish_steps must be 0, or positive with'):
        convert_to_pws(Net(), batches, polish_steps=steps, progress=False)
