"""Filters standardized by one GPU kernel each way.

``F.group_norm`` and what surrounds it launch about ten small kernels for each layer,
and a fast GPU waits for the CPU that launches them. The kernels of triton_filters.py
are one launch forward and one backward. docs/benchmarks-gpu.md has the measurements.
"""

import math
import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from torch.autograd import forward_ad

from ..compat import is_compiling

MAX_VALUES = 16384  # of a filter: a program holds it in registers
MIN_BLOCK = 1024  # so that small filters share one compiled kernel
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TENSORS = (Tensor, torch.nn.Parameter)  # subclasses may hold no memory
# Triton's interpreter runs the kernels on a CPU, for tests.
_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Gradients of is_grads_batched=True; the test is private, and not in the first versions
_is_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', lambda _: False)

_enabled = os.environ.get('PWS_FILTER_KERNEL') != '0'
_launchers: dict[tuple, Callable[..., None]] = {}


def use_filter_kernel(enabled: bool) -> None:
    """Let filters on a GPU be computed by the Triton kernel, or by ``F.group_norm``.

    The kernel is on by default; the environment variable PWS_FILTER_KERNEL=0 turns it
    off. Both compute the same, apart from rounding. Whatever the kernel cannot do,
    ``F.group_norm`` does: see ``can_use_kernel``.
    """
    global _enabled
    _enabled = enabled


@cache
def _kernels() -> ModuleType | None:
    """triton_filters.py, or None where Triton is not installed."""
    if torch.version.hip is not None:
        return None
    try:
        from . import triton_filters
    except ImportError:
        return None
    return triton_filters


@cache
def _works_on(device: torch.device) -> bool:
    """Tell whether Triton is there, and can compile for this device and run there."""
    if _kernels() is None or not (device.type == 'cuda' or _INTERPRETED):
        return False
    try:
        with torch.no_grad():
            weight, alpha = torch.ones(2, 16, device=device), torch.ones(2).to(device)
            _forward(weight, alpha, 1.0, True, weight.dtype)
            _backward(weight, alpha, weight, 1.0, True)
    except Exception as e:  # no C compiler, say, or a GPU that Triton does not know
        warnings.warn(
            f'Filters on {device} are computed by F.group_norm, because the Triton '
            f'kernel does not work there: {type(e).__name__}: {e}',
            stacklevel=2,
        )
        return False
    return True


def is_plain_eager() -> bool:
    """Tell that nothing traces, transforms or watches the operators of this moment.

    That is: no torch.compile, torch.func, torch.jit.trace, ONNX export, forward-mode
    derivative and no dispatch mode.
    """
    # Most of these functions are private; in torch 2.1 to 2.15.
    return not (
        is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def can_use_kernel(weight: Tensor, alpha: Tensor | None) -> bool:
    """Tell whether the kernel is on and can standardize these filters.

    They must lie on a CUDA device, in one piece of memory (also channels_last), in fp32
    or half precision, with at most MAX_VALUES numbers each.
    """
    return (
        _enabled
        and (weight.is_cuda or _INTERPRETED)
        and is_plain_eager()
        and has_kernel_for(weight, alpha)
        and _works_on(weight.device)
    )


def has_kernel_for(weight: Tensor, alpha: Tensor | None) -> bool:
    """As ``can_use_kernel``, whatever the device is."""
    if (
        type(weight) not in _TENSORS
        or weight.dtype not in DTYPES
        or not 0 < weight.numel() <= MAX_VALUES * weight.shape[0]
        or memory_format(weight) is None
    ):
        return False
    return alpha is None or (
        type(alpha) in _TENSORS
        and alpha.device == weight.device
        and alpha.dtype in DTYPES
        and alpha.dim() == 1
        and alpha.shape[0] in (1, weight.shape[0])
        and alpha.is_contiguous()
    )


def memory_format(weight: Tensor) -> torch.memory_format | None:
    """The format in which a filter is one piece of memory, or None."""
    if weight.is_contiguous():
        return torch.contiguous_format
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return None


def autocast_dtype() -> torch.dtype | None:
    """The dtype of autocast on a GPU; None outside of autocast."""
    if not torch.is_autocast_enabled():
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # new in torch 2.4
        return torch.get_autocast_dtype('cuda')
    return torch.get_autocast_gpu_dtype()


def conv_dtype(weight: Tensor) -> torch.dtype | None:
    """The dtype to which autocast converts these filters; None if it does not.

    The kernel writes that dtype itself, which saves a launch each way. None, too, while
    the kernel is off, or cannot be used because of torch.compile.
    """
    if (
        _enabled
        and not is_compiling()
        and type(weight) in _TENSORS
        and weight.is_cuda
        and weight.dtype == torch.float32
    ):
        return autocast_dtype()
    return None


def standardize_by_kernel(
    weight: Tensor,
    alpha: Tensor | None,
    gamma: float,
    scale: bool,
    dtype: torch.dtype,
    formula: Callable[..., Tensor],
) -> Tensor:
    """The filters, where ``has_kernel_for`` holds.

    Args:
        weight, alpha, gamma, scale, dtype: As of ``standardize_weight``.
        formula: Computes the same of weight, alpha, gamma and scale by differentiable
            operators; for gradients of gradients.
    """
    gamma = float(gamma)  # Triton compiles another kernel for an integer
    # A Function costs time, which a forward pass without gradients need not spend.
    if torch.is_grad_enabled() and (
        weight.requires_grad or (alpha is not None and alpha.requires_grad)
    ):
        return _apply(weight, alpha, (gamma, scale, dtype, formula))
    return _forward(weight, alpha, gamma, scale, dtype)


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, alpha, options):
        ctx.save_for_backward(weight, alpha)
        ctx.options = options
        gamma, scale, dtype, _ = options
        return _forward(weight, alpha, gamma, scale, dtype)

    @staticmethod
    def backward(ctx, grad):
        weight, alpha = ctx.saved_tensors
        if (
            torch.is_grad_enabled()  # create_graph=True: the gradients have gradients
            or not is_plain_eager()
            or type(grad) is not Tensor
            or _is_batched(grad)
        ):
            grads = _differentiable_backward(ctx, weight, alpha, grad)
        else:
            gamma, scale, *_ = ctx.options
            grads = _backward(weight, alpha, grad, gamma, scale)
        return *grads, None


# Function.apply without its own look at torch.func, which is_plain_eager() has had
_apply = super(torch.autograd.Function, _Standardize).apply


def _differentiable_backward(
    ctx: Any,
    weight: Tensor,
    alpha: Tensor | None,
    grad: Tensor,
) -> list[Tensor | None]:
    gamma, scale, _, formula = ctx.options
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        out = formula(weight, alpha, gamma, scale)
        needed = ctx.needs_input_grad[:2]
        inputs: Any = [p for p, n in zip((weight, alpha), needed, strict=True) if n]
        grads = iter(
            torch.autograd.grad(
                out, inputs, grad.to(out.dtype), create_graph=create_graph
            )
        )
    return [next(grads) if n else None for n in needed]


def _forward(
    weight: Tensor,
    alpha: Tensor | None,
    gamma: float,
    scale: bool,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty_like(weight, dtype=dtype)
    gain = weight if alpha is None else alpha
    _launch('forward_kernel', weight, alpha, (weight, gain, out), gamma, scale)
    return out


def _backward(
    weight: Tensor,
    alpha: Tensor | None,
    grad: Tensor,
    gamma: float,
    scale: bool,
) -> tuple[Tensor, Tensor | None]:
    layout: Any = memory_format(weight)
    if not grad.is_contiguous(memory_format=layout):
        grad = grad.contiguous(memory_format=layout)
    grad_weight = torch.empty_like(weight)
    per_filter = alpha is not None and alpha.shape[0] == weight.shape[0]
    if alpha is None:
        gain = grad_gain = weight
    elif per_filter:
        gain, grad_gain = alpha, torch.empty_like(alpha)
    else:
        gain = alpha
        grad_gain = weight.new_empty(weight.shape[0], dtype=torch.float32)
    tensors = weight, gain, grad, grad_weight, grad_gain
    _launch('backward_kernel', weight, alpha, tensors, gamma, scale)
    if alpha is None:
        return grad_weight, None
    if not per_filter:
        grad_gain = grad_gain.sum(0, keepdim=True).to(alpha.dtype)
    return grad_weight, grad_gain


def _launch(
    name: str,
    weight: Tensor,
    alpha: Tensor | None,
    tensors: tuple[Tensor, ...],
    gamma: float,
    scale: bool,
) -> None:
    """Start a kernel on the device of its tensors.

    Nearly all of its time is that of this function on the CPU, so it does no more than
    it must.
    """
    index = weight.get_device()
    if index < 0:  # a CPU: Triton's interpreter
        _launch_by_triton(name, weight, alpha, tensors, gamma, scale)
        return
    if index != torch._C._cuda_getDevice():
        with torch.cuda.device(index):
            _launch(name, weight, alpha, tensors, gamma, scale)
        return
    dtypes = [t.dtype for t in tensors]
    gains = None if alpha is None else alpha.shape
    key = (name, index, scale, weight.shape, gains, *dtypes)
    pointers = [t.data_ptr() for t in tensors]
    launcher = _launchers.get(key)
    # A kernel is compiled for memory that starts at a multiple of 16 bytes.
    aligned = not any([p & 15 for p in pointers])
    if launcher is not None and aligned:
        launcher(torch._C._cuda_getCurrentRawStream(index), pointers, gamma)
        return
    kernel = _launch_by_triton(name, weight, alpha, tensors, gamma, scale)
    if aligned and (launcher := _make_launcher(kernel, weight, alpha, scale)):
        _launchers[key] = launcher


def _sizes(
    weight: Tensor, alpha: Tensor | None, scale: bool
) -> tuple[int, float, int, int]:
    """n, the factor, the number of gains as the kernels count them, and the block."""
    n = math.prod(weight.shape[1:])
    gains = 0 if alpha is None else 2 if alpha.shape[0] == weight.shape[0] else 1
    block = max(MIN_BLOCK, 1 << (n - 1).bit_length())
    return n, math.sqrt(2 / n) if scale else 1.0, gains, block


def _launch_by_triton(
    name: str,
    weight: Tensor,
    alpha: Tensor | None,
    tensors: tuple[Tensor, ...],
    gamma: float,
    scale: bool,
) -> Any:
    """Compile the kernel if that is necessary, and start it."""
    n, factor, gains, block = _sizes(weight, alpha, scale)
    kernel = getattr(_kernels(), name)[(weight.shape[0],)]
    warps = min(16, max(4, block // 512))
    return kernel(*tensors, n, gamma, factor, gains, block, num_warps=warps)


@cache
def _launches_directly() -> bool:
    import triton

    return Version('3.4') <= Version(triton.__version__) < Version('3.10')


def _make_launcher(
    kernel: Any, weight: Tensor, alpha: Tensor | None, scale: bool
) -> Callable[[int, list[int], float], None] | None:
    """A function that starts a compiled kernel without Triton's look at its arguments.

    That look takes longer than the kernel. TorchInductor starts its kernels in the same
    way.
    """
    if kernel is None or not _launches_directly():
        return None
    n, factor, gains, block = _sizes(weight, alpha, scale)
    filters = weight.shape[0]
    run, function, metadata = kernel.run, kernel.function, kernel.packed_metadata

    def launch(stream: int, pointers: list[int], gamma: float) -> None:
        options = function, metadata, None, None, None
        run(filters, 1, 1, stream, *options, *pointers, n, gamma, factor, gains, block)

    return launch
