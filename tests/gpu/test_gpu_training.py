"""Training, conversion and checkpoints of whole networks on a GPU."""

import copy
import gc
import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
from conftest import load_config
from detector import Detector
from mmcv.cnn import ConvModule
from mmcv.ops import batched_nms, roi_align, sigmoid_focal_loss
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws, fuse_pws

pytestmark = pytest.mark.gpu

DETECTORS = dict(
    ssd='configs/mini/ssd96_vgg16_pws_digits.py',
    mask_rcnn='configs/mini/mask_rcnn_r18_fpn_pws_digits.py',
)
SIZE = 96
STEPS = 3


def operator(function, *args):
    """Call an operator of MMCV. Skip if MMCV was built without it."""
    try:
        return function(*args)
    except (RuntimeError, NotImplementedError) as e:
        if 'not implemented' in str(e) or 'not compiled' in str(e).lower():
            pytest.skip(f'MMCV has no such operator: {str(e).splitlines()[0]}')
        raise


def losses_of(name, device, dtype, memory_format=torch.contiguous_format):
    """Take a few steps, check the weights, and return the losses."""
    cfg = load_config(DETECTORS[name])
    cfg.optim_wrapper.clip_grad = None
    if dtype is not None:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype, loss_scale=128.0)
    detector = Detector(name, cfg, 2, (SIZE, SIZE))
    detector.build(device, num_boxes=3, memory_format=memory_format)
    for group in detector.optim_wrapper.param_groups:
        group['lr'] = 1e-3
    before = copy.deepcopy(detector.model.state_dict())
    losses = []
    for _ in range(STEPS):
        detector.prepare()
        torch.manual_seed(0)  # proposals are sampled
        losses.append(float(detector.run()))
    assert all(map(math.isfinite, losses))
    moved = 0
    for key, value in detector.model.state_dict().items():
        assert value.isfinite().all(), key
        moved += not torch.equal(value, before[key])
    assert moved > 10
    return losses


def needs_bfloat16_regions(name, dtype, device):
    if name == 'mask_rcnn' and dtype == 'bfloat16':
        x = torch.ones(1, 1, 4, 4, device=device, dtype=torch.bfloat16)
        rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=device).to(x.dtype)
        operator(roi_align, x, rois, 2)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', DETECTORS)
def test_half_precision_steps_are_close_to_fp32(name, dtype, device, monkeypatch):
    needs_bfloat16_regions(name, dtype, device)
    if device.type == 'cpu':
        if dtype == 'float16':
            pytest.skip('AmpOptimWrapper takes no fp16 on a CPU')
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    made = losses_of(name, device, dtype)
    wanted = losses_of(name, device, None)
    assert made == pytest.approx(wanted, rel=0.05 if name == 'ssd' else 0.25)


@pytest.mark.parametrize('name', DETECTORS)
def test_channels_last_steps_are_the_same(name, device):
    made = losses_of(name, device, None, torch.channels_last)
    wanted = losses_of(name, device, None)
    # In Mask R-CNN, proposals with almost equal scores may change their order.
    assert made == pytest.approx(wanted, rel=0.02 if name == 'ssd' else 0.1)


@pytest.mark.parametrize('name', DETECTORS)
@torch.no_grad()
def test_a_fused_detector_predicts_the_same(name, device):
    cfg = load_config(DETECTORS[name])
    detector = Detector(name, cfg, 2, (SIZE, SIZE), inference=True, fuse=False)
    detector.build(device, num_boxes=3)
    fused = fuse_pws(detector.model)
    assert not any(isinstance(m, PWSConv2d) for m in fused.modules())
    data = detector.model.data_preprocessor(copy.deepcopy(detector.batch), False)
    maps = [net.extract_feat(data['inputs']) for net in (fused, detector.model)]
    for made, wanted in zip(*maps, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-3)
    if name == 'ssd':
        scores = fused.bbox_head(maps[0]), detector.model.bbox_head(maps[1])
        torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


def test_operators_of_mmcv_equal_those_of_a_cpu(device):
    """RoIAlign and its gradient, NMS, focal loss."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 20, 20)
    corners = 60 * torch.rand(8, 2)
    boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(8, 2)], 1)
    rois = torch.cat([torch.arange(8).view(-1, 1) % 2, boxes], 1)

    def regions(where):
        own = x.to(where).requires_grad_()
        y = operator(roi_align, own, rois.to(where), 7, 0.25, 2, 'avg', True)
        y.square().sum().backward()
        return y.detach().cpu(), own.grad.cpu()

    for made, wanted in zip(regions(device), regions('cpu'), strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)

    scores, labels = torch.rand(8), torch.arange(8) % 3
    cfg = dict(type='nms', iou_threshold=0.3)
    args = [boxes, scores, labels]
    kept = [
        operator(batched_nms, *(t.to(where) for t in args), cfg)[1].cpu()
        for where in (device, 'cpu')
    ]
    assert torch.equal(*kept)

    if device.type == 'cuda':  # MMCV has no focal loss for CPUs
        logits = torch.randn(8, 3)
        args = logits.to(device), labels.to(device), 2.0, 0.25, None, 'none'
        made = operator(sigmoid_focal_loss, *args).cpu()
        p, y = logits.sigmoid(), nn.functional.one_hot(labels, 3)
        q = torch.where(y == 1, p, 1 - p)
        weight = torch.where(y == 1, 0.25, 0.75)
        wanted = -weight * (1 - q) ** 2 * q.log()
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-6)


def test_conversion_on_the_device_is_exact(device):
    torch.manual_seed(0)
    bn = dict(type='BN')
    layers = [ConvModule(3, 16, 3, norm_cfg=bn), ConvModule(16, 16, 3, norm_cfg=bn)]
    net = nn.Sequential(*layers)
    images = torch.randn(16, 3, 20, 20)
    net.train()
    for _ in range(20):
        net(images)
    net.eval()
    on_cpu, _ = convert_to_pws(net)
    made, report = convert_to_pws(net.to(device))
    assert [layer.kept for layer in report] == ['', '']
    assert {v.device.type for v in made.state_dict().values()} == {device.type}
    for key, value in made.state_dict().items():
        wanted = on_cpu.state_dict()[key]
        torch.testing.assert_close(value.cpu(), wanted, rtol=1e-4, atol=1e-5)
    images = images.to(device)
    with torch.no_grad():
        torch.testing.assert_close(made(images), net(images), rtol=1e-4, atol=1e-4)
        fused = fuse_pws(made)
        torch.testing.assert_close(fused(images), net(images), rtol=1e-4, atol=1e-4)
    made.train()(images).square().mean().backward()
    for conv in (made[0].conv, made[1].conv):
        grad = conv.weight.grad.flatten(1)
        assert grad.sum(1).abs().max() < 1e-4 * grad.abs().sum(1).max()


def test_checkpoints_of_detectors_move_to_a_cpu_and_back(device, tmp_path):
    """The checkpoint holds the state of the optimizer, too, as MMEngine writes it."""
    cfg = load_config(DETECTORS['ssd'])
    detector = Detector('ssd', cfg, 2, (SIZE, SIZE))
    detector.build(device, num_boxes=3)
    detector.step()
    weights = detector.model.state_dict()
    path = str(tmp_path / 'device.pth')
    optimizer = detector.optim_wrapper.state_dict()
    save_checkpoint(dict(state_dict=weights, optimizer=optimizer), path)

    on_cpu = Detector('ssd', load_config(DETECTORS['ssd']), 2, (SIZE, SIZE))
    on_cpu.build(torch.device('cpu'), num_boxes=3, seed=1)
    loaded = load_checkpoint(on_cpu.model, path, map_location='cpu', strict=True)
    on_cpu.optim_wrapper.load_state_dict(loaded['optimizer'])
    for key, value in on_cpu.model.state_dict().items():
        assert torch.equal(value, weights[key].cpu()), key
    on_cpu.step()
    path = str(tmp_path / 'cpu.pth')
    optimizer = on_cpu.optim_wrapper.state_dict()
    save_checkpoint(
        dict(state_dict=on_cpu.model.state_dict(), optimizer=optimizer), path
    )

    loaded = load_checkpoint(detector.model, path, map_location=device, strict=True)
    detector.optim_wrapper.load_state_dict(loaded['optimizer'])
    for key, value in detector.model.state_dict().items():
        assert torch.equal(value.cpu(), on_cpu.model.state_dict()[key]), key
    detector.step()


def network(device):
    torch.manual_seed(0)
    layers = [PWSConv2d(3, 8, 3), nn.ReLU(), PWSConv2d(8, 4, 3, alpha='layer')]
    return nn.Sequential(*layers).to(device), torch.randn(4, 3, 9, 9, device=device)


def train(net, forward, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        forward(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.cpu() for key, value in net.state_dict().items()}


def distributed_worker(rank, backend, port, world_size, path):
    device = torch.device('cuda', rank) if backend == 'nccl' else torch.device('cpu')
    if backend == 'nccl':
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=world_size
    )
    net, x = network(device)
    wrapped = nn.parallel.DistributedDataParallel(
        net, device_ids=[rank] if backend == 'nccl' else None
    )
    weights = train(net, wrapped, x.chunk(world_size)[rank])
    if rank == 0:
        torch.save(weights, path)
    del wrapped
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.parametrize('world_size', [1, 2])
def test_distributed_training_equals_one_process(world_size, device, tmp_path):
    if device.type == 'cuda' and torch.cuda.device_count() < world_size:
        pytest.skip(f'the test needs {world_size} GPUs')
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    path = os.fspath(tmp_path / 'weights.pth')
    args = (backend, port, world_size, path)
    torch.multiprocessing.spawn(distributed_worker, args, nprocs=world_size)
    net, x = network(device)
    wanted = train(net, net, x)
    for key, value in torch.load(path, weights_only=True).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-4)


def test_a_compiled_backbone_computes_the_same(device):
    if device.type == 'cpu':
        pytest.skip('tests/test_matrix.py tests it on a CPU')
    torch.compiler.reset()
    cfg = dict(type='PWSResNet', depth=18, base_channels=16, stem_norm_cfg=None)
    model = MODELS.build(cfg).to(device)
    x = torch.randn(2, 3, 64, 64, device=device)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(forward):
        outs = forward(x)
        loss = sum(y.float().square().mean() for y in outs)
        return [*outs, *torch.autograd.grad(loss, parameters)]

    made, wanted = step(torch.compile(model, fullgraph=True)), step(model)
    for a, b in zip(made, wanted, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-6
