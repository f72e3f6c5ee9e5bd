"""The Triton kernel computes the same filters as the formula in fp64.

The tests run on a GPU. With TRITON_INTERPRET=1 PWS_GPU_TESTS_ON=cpu they run on a CPU,
in Triton's interpreter.
"""

import os

import pytest
import torch
from torch import nn

from pws_mmdet import PWSConv2d, standardize_weight
from pws_mmdet.layers import shared_filters
from pws_mmdet.layers.filter_kernel import MAX_VALUES, use_filter_kernel

pytest.importorskip('triton', reason='Triton is not installed')
pytestmark = pytest.mark.gpu

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def kernel(device):
    if device.type == 'cpu' and os.environ.get('TRITON_INTERPRET') != '1':
        pytest.skip("a CPU needs Triton's interpreter")
    use_filter_kernel(True)
    yield
    use_filter_kernel(os.environ.get('PWS_FILTER_KERNEL') != '0')


def formula(weight, alpha, gamma, scale):
    w = weight.double().flatten(1)
    n = w.shape[1]
    variance, mean = torch.var_mean(w, 1, correction=0, keepdim=True)
    w_hat = (w - mean) / (variance + gamma).sqrt()
    if scale:
        w_hat = w_hat * (2 / n) ** 0.5
    if alpha is not None:
        w_hat = w_hat * alpha.double()[:, None]
    return w_hat.view(weight.shape)


def make(shape, gains, device, dtype=torch.float32):
    weight = (0.1 * torch.randn(shape) + 0.05).to(device, dtype).requires_grad_()
    size = dict(filter=shape[0], layer=1, none=0)[gains]
    if size == 0:
        return weight, None
    return weight, (torch.rand(size) + 0.5).to(device, dtype).requires_grad_()


def is_by_kernel(filters):
    return 'Standardize' in type(filters.grad_fn).__name__


def assert_right(weight, alpha, gamma=1e-3, scale=True, dtype=None):
    """Check that filters and gradients equal those of the formula."""
    made = standardize_weight(weight, alpha, gamma, scale, dtype)
    assert is_by_kernel(made)
    assert made.dtype == (dtype or weight.dtype) and made.shape == weight.shape
    wanted = formula(weight, alpha, gamma, scale)
    assert_close(made, wanted)
    grad = torch.randn(weight.shape, device=weight.device).to(made.dtype)
    inputs = [p for p in (weight, alpha) if p is not None]
    wanted = torch.autograd.grad(wanted, inputs, grad.double())
    for p, a, b in zip(
        inputs, torch.autograd.grad(made, inputs, grad), wanted, strict=True
    ):
        assert a.dtype == p.dtype and a.stride() == p.stride()
        assert_close(a, b)


def assert_close(made, wanted):
    assert made.isfinite().all()
    error = (made.double() - wanted).norm() / wanted.norm()
    assert error < max(torch.finfo(made.dtype).eps, 2e-5), error.item()


@pytest.mark.parametrize('gains', ['filter', 'layer', 'none'])
@pytest.mark.parametrize(
    'shape', [(8, 3, 7, 7), (4, 16, 3, 3), (6, 64, 1, 1), (2, 512, 3, 3), (3, 130, 3)]
)
def test_filters_and_gradients_equal_the_formula(shape, gains, device):
    assert_right(*make(shape, gains, device))


@pytest.mark.parametrize('n', [2, 5, 1023, 1025, MAX_VALUES])
def test_filters_of_any_size(n, device):
    assert_right(*make((3, n), 'filter', device))


def test_gamma_and_scale(device):
    weight, alpha = make((4, 16, 3, 3), 'filter', device)
    for gamma in (1, 1e-8, 7.5):
        for scale in (True, False):
            assert_right(weight, alpha, gamma, scale)


@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_half_precision(dtype, device):
    assert_right(*make((4, 16, 3, 3), 'filter', device, dtype))
    assert_right(*make((4, 16, 3, 3), 'layer', device, dtype))
    # As under autocast: fp32 weights, half precision filters.
    assert_right(*make((4, 16, 3, 3), 'filter', device), dtype=dtype)
    assert_right(*make((4, 16, 3, 3), 'layer', device), dtype=dtype)


@pytest.mark.parametrize('gains', ['filter', 'layer'])
def test_channels_last(gains, device):
    weight, alpha = make((4, 16, 3, 3), gains, device)
    weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_right(weight, alpha)  # with a contiguous gradient of the filters
    made = standardize_weight(weight, alpha)
    assert made.stride() == weight.stride()
    (made**2).sum().backward()
    kept = weight.grad
    weight.grad = None
    use_filter_kernel(False)
    (standardize_weight(weight, alpha) ** 2).sum().backward()
    torch.testing.assert_close(kept, weight.grad, rtol=1e-4, atol=1e-5)


def test_weights_need_no_alignment(device):
    """A kernel that was compiled for addresses of multiples of 16 bytes also works."""
    alpha = torch.rand(4, device=device)
    for offset in (0, 1, 2, 0):
        memory = torch.randn(4 * 144 + 4, device=device)
        weight = memory[offset : offset + 4 * 144].view(4, 16, 3, 3).requires_grad_()
        assert_right(weight, alpha.requires_grad_())


def test_frozen_weights_or_alpha(device):
    weight, alpha = make((4, 16, 3, 3), 'filter', device)
    wanted = formula(weight, alpha, 1e-4, True)
    with torch.no_grad():
        assert_close(standardize_weight(weight, alpha), wanted)
    with torch.inference_mode():
        assert_close(standardize_weight(weight, alpha), wanted)
    # Only one of the two is trained.
    for trained in (weight, alpha):
        w, a = weight.detach(), alpha.detach()
        w.requires_grad_(trained is weight)
        a.requires_grad_(trained is alpha)
        made = standardize_weight(w, a)
        assert is_by_kernel(made)
        made.square().sum().backward()
        assert (w.grad is None) == (trained is alpha)
        assert (a.grad is None) == (trained is weight)


@pytest.mark.parametrize('gains', ['filter', 'layer', 'none'])
def test_gradients_of_gradients(gains, device):
    weight, alpha = make((4, 16, 3, 3), gains, device)
    inputs = [p for p in (weight, alpha) if p is not None]

    def second():
        made = standardize_weight(weight, alpha, 1e-3)
        grads = torch.autograd.grad((made**3).sum(), inputs, create_graph=True)
        loss = sum((g**2).sum() for g in grads)
        return torch.autograd.grad(loss, inputs)

    made = second()
    use_filter_kernel(False)
    for a, b in zip(made, second(), strict=True):
        assert_close(a, b.double())


def test_other_weights_are_left_to_group_norm(device):
    def uses_kernel(weight):
        return is_by_kernel(standardize_weight(weight.requires_grad_()))

    assert uses_kernel(torch.randn(4, 36, device=device))
    assert not uses_kernel(torch.randn(4, 36, device=device).double())
    assert not uses_kernel(torch.randn(2, MAX_VALUES + 1, device=device))
    assert not uses_kernel(torch.randn(36, 4, device=device).T)
    assert not uses_kernel(torch.randn(4, 36, device='meta'))


def test_transforms_of_functions(device):
    weights = torch.randn(3, 4, 36, device=device)
    use_filter_kernel(False)
    wanted = torch.stack([standardize_weight(w) for w in weights])
    use_filter_kernel(True)
    torch.testing.assert_close(torch.func.vmap(standardize_weight)(weights), wanted)

    def loss(w):
        return (standardize_weight(w) ** 3).sum()

    w = weights[0].clone().requires_grad_()
    loss(w).backward()
    made = torch.func.grad(loss)(weights[0])
    torch.testing.assert_close(made, w.grad, rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(loss, (weights[0],), (weights[1],))
    torch.testing.assert_close(
        tangent, (w.grad * weights[1]).sum(), rtol=1e-3, atol=1e-3
    )
    filters = standardize_weight(w)
    grads = torch.randn(2, *filters.shape, device=device)
    (made,) = torch.autograd.grad(
        filters, w, grads, retain_graph=True, is_grads_batched=True
    )
    for a, g in zip(made, grads, strict=True):
        (b,) = torch.autograd.grad(filters, w, g, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    traced = torch.jit.trace(standardize_weight, weights[0])
    torch.testing.assert_close(traced(weights[1]), wanted[1])


@pytest.mark.parametrize('dtype', [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize('gains', ['filter', 'layer', 'none'])
def test_means_are_added_to_the_filters(gains, dtype, device):
    weight, alpha = make((4, 16, 3, 3), gains, device)
    mean = torch.randn(4, device=device)
    made = standardize_weight(weight, alpha, 1e-3, dtype=dtype, mean=mean)
    assert 'Standardize' in type(made.grad_fn.next_functions[0][0]).__name__
    shift = mean.double().view(-1, 1, 1, 1)
    wanted = formula(weight, alpha, 1e-3, True) + shift
    assert made.dtype == dtype
    error = (made.double() - wanted).norm() / wanted.norm()
    assert error < max(2 * torch.finfo(dtype).eps, 2e-5)
    grad = torch.randn_like(weight).to(dtype)
    inputs = [p for p in (weight, alpha) if p is not None]
    without = standardize_weight(weight, alpha, 1e-3, dtype=dtype)
    for a, b in zip(
        torch.autograd.grad(made, inputs, grad),
        torch.autograd.grad(without, inputs, grad),
        strict=True,
    ):
        assert torch.equal(a, b)  # the mean is a constant


@pytest.mark.parametrize('keep_mean', [False, True])
@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_autocast(dtype, keep_mean, device):
    """The kernel writes the filters in the dtype of the convolution."""
    if device.type == 'cpu':
        pytest.skip('the kernel supports the autocast of GPUs only')
    conv = PWSConv2d(8, 8, 3, keep_mean=keep_mean).to(device)
    if keep_mean:
        nn.init.normal_(conv.mean, std=0.1)
    x = torch.randn(2, 8, 6, 6, device=device)

    def results():
        with torch.autocast('cuda', dtype):
            y = conv(x)
        y.float().square().sum().backward()
        grads = [p.grad.clone() for p in conv.parameters()]
        conv.zero_grad()
        return [y, *grads]

    made = results()
    with torch.autocast('cuda', dtype):
        assert conv.filters_to_convolve_with().dtype == dtype
        assert conv.effective_weight().dtype == torch.float32
    use_filter_kernel(False)
    for a, b in zip(made, results(), strict=True):
        assert a.dtype == b.dtype
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error < 2 * torch.finfo(dtype).eps


def test_shared_filters_have_the_dtype_of_each_call(device):
    conv = PWSConv2d(8, 8, 3).to(device)
    x = torch.randn(2, 8, 6, 6, device=device)
    with shared_filters():
        with torch.autocast(device.type, torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        made = conv(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, conv(x))


def test_training_steps_in_a_cuda_graph(device):
    if device.type == 'cpu':
        pytest.skip('a CPU has no CUDA graphs')
    net = nn.Sequential(PWSConv2d(8, 8, 3), nn.ReLU(), PWSConv2d(8, 4, 1)).to(device)
    x = torch.randn(2, 8, 6, 6, device=device)

    def gradients(step):
        net.zero_grad()
        step(x).square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    wanted = gradients(net)
    graphed = torch.cuda.make_graphed_callables(net, (x.clone(),))
    for a, b in zip(gradients(graphed), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_another_device_than_the_current_one(device):
    if torch.cuda.device_count() < 2:
        pytest.skip('the test needs 2 GPUs')
    assert_right(*make((4, 16, 3, 3), 'filter', torch.device('cuda', 1)))
