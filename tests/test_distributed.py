"""Two processes compute what one computes on the same pictures."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_on_two_processes
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hooks import SyncBuffersHook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from torch import nn

import pws_mmdet  # noqa: F401
from pws_mmdet import PWSSSDHead


def build(name):
    """A small detector whose loss is a mean over pictures, and its pictures."""
    torch.manual_seed(0)
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / f'configs/mini/{name}_pws_digits.py').model
    if name.startswith('mask'):
        # As many samples in every picture: exactly one of them positive, and the
        # first ones instead of random ones.
        cfg.train_cfg.rcnn.sampler.update(num=16, pos_fraction=1 / 16)
        RandomSampler.random_choice = lambda self, gallery, num: gallery[:num]
    else:
        # SSD divides by the number of positives in the batch of a process.
        stock = PWSSSDHead.get_targets

        def get_targets(self, anchor_list, *args, **kwargs):
            *targets, _ = stock(self, anchor_list, *args, **kwargs)
            return (*targets, 10 * len(anchor_list))

        PWSSSDHead.get_targets = get_targets
    model = MODELS.build(cfg)
    model.init_weights()
    inputs = demo_mm_inputs(
        4, [[3, 96, 96]] * 4, num_items=[2, 1, 3, 2], num_classes=10, with_mask=True
    )
    return model, inputs


def gradients(model, wrapped, inputs, pictures):
    inputs = {key: [values[i] for i in pictures] for key, values in inputs.items()}
    inputs = model.data_preprocessor(copy.deepcopy(inputs), True)
    loss, _ = model.parse_losses(wrapped(**inputs, mode='loss'))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def detector_worker(rank, name, path):
    model, inputs = build(name)
    wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
    grads = gradients(model, wrapped, inputs, range(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(grads, path)


@pytest.fixture
def stock_classes(monkeypatch):
    """Undo after the test what :func:`build` changes."""
    monkeypatch.setattr(RandomSampler, 'random_choice', RandomSampler.random_choice)
    monkeypatch.setattr(PWSSSDHead, 'get_targets', PWSSSDHead.get_targets)


@pytest.mark.parametrize('name', ['mask_rcnn_r18_fpn', 'ssd96_vgg16'])
def test_gradients_of_detectors(name, tmp_path, stock_classes):
    path = tmp_path / 'gradients.pth'
    run_on_two_processes(detector_worker, name, path)
    two = torch.load(path)
    model, inputs = build(name)
    one = gradients(model, model, inputs, range(4))
    assert all(grad is not None for grad in one.values())
    largest = max(grad.abs().max().item() for grad in one.values())
    for key, grad in one.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(
            two[key],
            grad,
            rtol=1e-3,
            atol=1e-4 * scale + 1e-6 * largest,  # sums that cancel
            msg=lambda m, k=key: k + m,
        )


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
        forward(x).square().mean().backward()  # a mean over pictures
        optimizer.step()
        optimizer.zero_grad()


def test_weights_of_layers(tmp_path):
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
    net = nn.Sequential(convs[0], pws_mmdet.SwitchableNorm2d(8), nn.ReLU(), convs[1])
    before = net.state_dict()['1.mean_weight'].clone()
    wrapped = nn.parallel.DistributedDataParallel(net, broadcast_buffers=True)
    train(net, wrapped, torch.randn(2, 3, 9, 9) + rank)
    assert not torch.equal(net[1].mean_weight, before)
    own = copy.deepcopy(net.state_dict())
    runner = SimpleNamespace(model=wrapped)
    SyncBuffersHook().after_train_epoch(runner)
    torch.save((own, net.state_dict()), f'{path}.{rank}')


def test_running_statistics_of_switchable_norm(tmp_path):
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
