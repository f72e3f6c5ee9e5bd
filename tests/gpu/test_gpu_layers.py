"""The layers on a GPU."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pws_mmdet import PWSConv2d, fuse_pws, share_filters, standardize_weight
from pws_mmdet.layers import (
    AnySizeInstanceNorm2d,
    DynamicTanh,
    NoNorm,
    ScaledWSConv2d,
    SwitchableNorm2d,
    WNConv2d,
)

pytestmark = pytest.mark.gpu

CHANNELS = 32
Conv = functools.partial(PWSConv2d, CHANNELS, CHANNELS, 3, padding=1)
LAYERS = {
    'PWS': Conv,
    'PWS, alpha of the layer': functools.partial(Conv, alpha='layer'),
    'PWS, alpha fixed': functools.partial(Conv, alpha='fixed'),
    'PWS, relative gamma': functools.partial(Conv, gamma=0.1, relative_gamma=True),
    'PWS, groups': functools.partial(Conv, groups=4),
    'PWS, unscaled': functools.partial(Conv, scale=False),
    'PWS, kept mean': functools.partial(Conv, keep_mean=True),
    'WN': functools.partial(WNConv2d, CHANNELS, CHANNELS, 3, padding=1),
    'ScaledWS': functools.partial(ScaledWSConv2d, CHANNELS, CHANNELS, 3, padding=1),
    'SN': functools.partial(SwitchableNorm2d, CHANNELS),
    'IN': functools.partial(AnySizeInstanceNorm2d, CHANNELS, affine=True),
    'DyT': functools.partial(DynamicTanh, CHANNELS),
    'no norm': functools.partial(NoNorm, CHANNELS, bias=True),
}
CONVOLUTIONS = [name for name in LAYERS if name.startswith(('PWS', 'WN', 'Scaled'))]
HALF = [torch.float16, torch.bfloat16]
EXACT = 1e-4  # relative error: fp32 is below it, TF32 is above 3e-4


def make(name, device):
    """Return a layer with random parameters, and an input for it."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for key, p in layer.named_parameters():
        if key != 'weight' or p.dim() == 1:
            nn.init.uniform_(p, 0.5, 1.5)
    if getattr(layer, 'mean', None) is not None:
        nn.init.normal_(layer.mean, std=0.05)
    x = torch.randn(4, CHANNELS, 12, 12)
    return layer.to(device), x.to(device)


def results(layer, x, dtype=None):
    """Return the output and the gradients, in fp64 on the CPU."""
    x = x.detach().requires_grad_()
    parameters = dict(layer.named_parameters())
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        y = layer(x)
    weights = torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape)
    grads = torch.autograd.grad((y.float() * weights).sum(), [x, *parameters.values()])
    made = dict(zip(['y', 'x', *parameters], [y, *grads], strict=True))
    return {key: value.detach().cpu().double() for key, value in made.items()}


def assert_close(made, wanted, tolerance):
    assert made.keys() == wanted.keys()
    for key, right in wanted.items():
        assert made[key].isfinite().all(), key
        error = (made[key] - right).norm() / right.norm()
        assert error < tolerance, (key, error.item())


@pytest.mark.parametrize('name', LAYERS)
def test_a_gpu_computes_the_same_as_a_cpu(name, device):
    layer, x = make(name, device)
    wanted = results(copy.deepcopy(layer).cpu().double(), x.cpu().double())
    assert_close(results(layer, x), wanted, EXACT)


@pytest.mark.parametrize('dtype', HALF, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_autocast_is_close_to_fp32(name, dtype, device):
    layer, x = make(name, device)
    wanted = results(layer, x)
    assert_close(results(layer, x, dtype), wanted, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_filters_of_half_precision_weights(dtype, device):
    """The variance is computed in fp32, since gamma would be 0 in fp16."""
    weight = (1e-2 * torch.randn(16, 8, 3, 3, device=device)).to(dtype)
    made = standardize_weight(weight, gamma=1e-8)
    assert made.dtype == dtype
    wanted = standardize_weight(weight.double(), gamma=1e-8)
    error = (made.double() - wanted).norm() / wanted.norm()
    assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize('name', LAYERS)
def test_channels_last_computes_the_same(name, device):
    layer, x = make(name, device)
    wanted = results(layer, x)
    layer.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert_close(results(layer, x), wanted, EXACT)
    if name in CONVOLUTIONS:
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'name', ['PWS', 'PWS, alpha of the layer', 'PWS, groups', 'WN', 'ScaledWS']
)
def test_compiled_layers_compute_the_same(name, device):
    torch.compiler.reset()
    layer, x = make(name, device)
    wanted = results(layer, x)
    backend = 'inductor' if device.type == 'cuda' else 'aot_eager'
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    made = results(compiled, x)
    made = {key.removeprefix('_orig_mod.'): value for key, value in made.items()}
    assert_close(made, wanted, 1e-4)


@pytest.mark.parametrize('name', CONVOLUTIONS)
@torch.no_grad()
def test_fused_layers_stay_on_the_device(name, device):
    layer, x = make(name, device)
    net = nn.Sequential(layer, nn.ReLU()).eval()
    fused = fuse_pws(net)
    assert type(fused[0]) is nn.Conv2d
    assert {p.device.type for p in fused.parameters()} == {device.type}
    torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-4)


def test_shared_filters_are_computed_once(device, monkeypatch):
    class Head(nn.Sequential):
        def forward(self, x):
            maps = [super(Head, self).forward(x[..., ::s, ::s]) for s in (1, 2, 4)]
            return torch.cat([y.flatten(2) for y in maps], 2)

    layer, x = make('PWS', device)
    head = Head(layer)
    wanted = results(head, x)
    calls = []
    compute = layer.effective_weight
    monkeypatch.setattr(layer, 'effective_weight', lambda: calls.append(0) or compute())
    made = results(share_filters(head), x)
    assert len(calls) == 1
    assert_close(made, wanted, EXACT)


@pytest.mark.parametrize('name', LAYERS)
def test_weights_move_to_a_cpu_and_back(name, device, tmp_path):
    layer, x = make(name, device)
    y = layer.eval()(x)
    torch.save(layer.state_dict(), tmp_path / 'device.pth')
    on_cpu = LAYERS[name]().eval()
    on_cpu.load_state_dict(
        torch.load(tmp_path / 'device.pth', map_location='cpu', weights_only=True)
    )
    torch.testing.assert_close(on_cpu(x.cpu()), y.cpu(), rtol=1e-4, atol=1e-4)
    torch.save(on_cpu.state_dict(), tmp_path / 'cpu.pth')
    back = LAYERS[name]().to(device).eval()
    back.load_state_dict(
        torch.load(tmp_path / 'cpu.pth', map_location=device, weights_only=True)
    )
    for key, value in back.state_dict().items():
        assert torch.equal(value, layer.state_dict()[key]), key
    torch.testing.assert_close(back(x), y, rtol=1e-4, atol=1e-4)


def test_a_step_does_not_synchronize_with_the_gpu(device):
    """The CPU never waits for a value from the GPU."""
    if device.type == 'cpu':
        pytest.skip('a CPU has nothing to synchronize with')
    layer, x = make('PWS', device)
    F.relu(layer(x)).sum().backward()
    torch.cuda.set_sync_debug_mode('error')
    try:
        F.relu(layer(x)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_a_cuda_graph_uses_the_current_weights(device):
    """A replay of the graph uses weights that changed after the capture."""
    if device.type == 'cpu':
        pytest.skip('a CPU has no CUDA graphs')
    layer, x = make('PWS', device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = layer(x)
    with torch.no_grad():
        layer.weight.normal_()
    graph.replay()
    torch.testing.assert_close(y, layer(x).detach(), rtol=1e-4, atol=1e-4)
