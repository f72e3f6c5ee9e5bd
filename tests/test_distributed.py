"""Two processes compute what one computes on the same images.

test_matrix.py compares the gradients of detectors.
"""

import copy
from types import SimpleNamespace

import torch
from conftest import run_on_two_processes
from mmengine.hooks import SyncBuffersHook
from torch import nn

import pws_mmdet  # noqa: F401


def layer_worker(rank, path):
    net, x = layers()
    wrapped = nn.parallel.DistributedDataParallel(net)
    train(net, wrapped, x[2 * rank : 2 * rank + 2])
    if rank == 0:
        torch.save(net.state_dict(), path)


def layers():
    torch.manual_seed(0)
    convs = [pws_mmdet.PWSConv2d(3, 8, 3), nn.ReLU(), pws_mmdet.PWSConv2d(8, 4, 3)]
    net = nn.Sequential(*convs).double()
    return net, torch.randn(4, 3, 9, 9, dtype=torch.float64)


def train(net, forward, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        forward(x).square().mean().backward()  # a mean over images
        optimizer.step()
        optimizer.zero_grad()


def test_two_processes_train_pws_layers_as_one_does(tmp_path):
    path = tmp_path / 'weights.pth'
    run_on_two_processes(layer_worker, path)
    net, x = layers()
    before = copy.deepcopy(net.state_dict())
    train(net, net, x)
    for key, value in torch.load(path).items():
        assert not torch.equal(value, before[key])
        torch.testing.assert_close(value, net.state_dict()[key])


def switchable_norm_worker(rank, path):
    torch.manual_seed(rank)
    convs = [nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3)]
    net = nn.Sequential(
        convs[0], pws_mmdet.layers.SwitchableNorm2d(8), nn.ReLU(), convs[1]
    )
    before = net.state_dict()['1.mean_weight'].clone()
    wrapped = nn.parallel.DistributedDataParallel(net, broadcast_buffers=True)
    train(net, wrapped, torch.randn(2, 3, 9, 9) + rank)
    assert not torch.equal(net[1].mean_weight, before)
    own = copy.deepcopy(net.state_dict())
    runner = SimpleNamespace(model=wrapped)
    SyncBuffersHook().after_train_epoch(runner)
    torch.save((own, net.state_dict()), f'{path}.{rank}')


def test_running_statistics_of_switchable_norm_are_averaged(tmp_path):
    path = tmp_path / 'states.pth'
    run_on_two_processes(switchable_norm_worker, path)
    (own, averaged), (other, others_averaged) = (
        torch.load(f'{path}.{rank}') for rank in range(2)
    )
    for key, value in averaged.items():
        assert torch.equal(value, others_averaged[key])
        if 'running' in key:
            assert not torch.equal(own[key], other[key])
            torch.testing.assert_close(value, (own[key] + other[key]) / 2)
        else:
            assert torch.equal(own[key], other[key])
