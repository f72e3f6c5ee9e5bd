"""Find which BN layer follows which convolution.

Two sources tell it: forward passes (``Trace``), and the names in a checkpoint
(``pair_by_name``).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..compat import tree_leaves
from ..utils.config import describe
from .first_pass import PassEnded, Run
from .forward import tensors_in

# Why a convolution and the BN layer behind it stay as they are
NOT_CALLED = (
    'no forward pass called it, and BN may follow it: give batches, or forward, that '
    'call it'
)
NOT_ALL_CALLED = (
    'the forward pass ended with an error before all that may read its outputs was '
    'called: give batches, or forward'
)


def is_plain_conv(module: nn.Module) -> bool:
    """Tell whether a module is an ``nn.Conv2d`` (or MMCV's) and no subclass."""
    # With spectral norm or a parametrization, the weight is computed and no parameter.
    return (
        type(module) in (nn.Conv2d, MMCVConv2d)
        and 'weight' in module._parameters
        and 'forward' not in vars(module)
    )


def is_bn(module: nn.Module) -> bool:
    """Tell whether a module is BN only. Some subclasses include an activation."""
    forward = getattr(type(module), 'forward', None)
    return (
        isinstance(module, _BatchNorm)
        and forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        and 'forward' not in vars(module)
    )


class Trace(TorchDispatchMode):
    """Records in forward passes which BN layers read the outputs of convolutions.

    Args:
        model: The network.
        convs: Its convolutions into which BN can be folded.

    Attributes:
        called: The convolutions and BN layers that were called and returned.
        read: For each BN layer, call by call, the convolution that produced its
            input; None for an input that no convolution produced.
        elsewhere: Convolutions whose outputs are also used by other operations.
        bypassed: Modules whose parameters are used outside of their forward pass.
        pending: Convolutions whose outputs the network still held when it raised an
            error, so that what was not called may read them.
        error: The error that ended a forward pass, in one line.
    """

    def __init__(self, model: nn.Module, convs: Collection[nn.Module]) -> None:
        super().__init__()
        self.convs = set(convs)
        self.parts = [m for m in model.modules() if m in self.convs or is_bn(m)]
        self.called: set[nn.Module] = set()
        self.read: dict[nn.Module, list[nn.Module | None]] = {}
        self.elsewhere: set[nn.Module] = set()
        self.bypassed: set[nn.Module] = set()
        self.pending: set[nn.Module] = set()
        self.error = ''
        self.running: list[nn.Module] = []
        self.made = WeakTensorKeyDictionary()
        self.owners = WeakTensorKeyDictionary()
        for module in self.parts:
            for parameter in module.parameters():
                self.owners.setdefault(parameter, set()).add(module)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.running.append(module)
        if is_bn(module):
            x = next(iter((*args, *kwargs.values())))
            self.read.setdefault(module, []).append(self.made.get(x))

    def _leave(self, module: nn.Module, args: tuple, y: Tensor) -> None:
        self.running.pop()
        self.called.add(module)
        if module in self.convs:
            self.made[y] = module

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        # new_zeros, zeros_like and so on read the shape of a tensor only.
        if not (name.startswith('new_') or name.endswith('_like')):
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    self._use(x)
        return func(*args, **(kwargs or {}))

    def _use(self, x: Tensor) -> None:
        running = self.running[-1] if self.running else None
        owners = self.owners.get(x)
        if owners and running not in owners:
            self.bypassed |= owners
        if x in self.made and not (running and is_bn(running)):
            self.elsewhere.add(self.made[x])

    def follow(self, model: nn.Module, runs: Sequence[Run]) -> list[Run]:
        """Call the network until all its convolutions and BN layers were called.

        Args:
            model: The network that the trace was made for.
            runs: Call it. One after the other is tried.

        Returns:
            Those that called a layer which none before called.
        """
        hooks = [
            hook
            for module in self.parts
            for hook in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave),
            )
        ]
        useful = []
        try:
            for run in runs:
                before = len(self.called)
                self._follow_one(model, run)
                if len(self.called) > before:
                    useful.append(run)
                if len(self.called) == len(self.parts):
                    break
        finally:
            for hook in hooks:
                hook.remove()
        return useful

    def _follow_one(self, model: nn.Module, run: Run) -> None:
        self.running.clear()
        try:
            with self:
                outputs = run(model)
        except PassEnded as ended:
            if isinstance(ended.__cause__, Exception):
                self.error = describe(ended.__cause__)
            # The traceback holds the variables of the network, so that all tensors
            # that it could still use exist. No others do.
            self.pending.update(self.made.values())
            return
        for x in tensors_in(outputs):
            if x in self.made:
                self.elsewhere.add(self.made[x])

    def readers(self, conv: nn.Module) -> list[nn.Module]:
        """Return the BN layers that read the outputs of a convolution."""
        return [bn for bn, makers in self.read.items() if conv in makers]

    def folds(self, bn: nn.Module) -> bool:
        """Tell whether a BN layer can be folded into all convolutions that it reads."""
        return bn not in self.bypassed and all(
            conv is not None
            and conv not in self.elsewhere | self.bypassed | self.pending
            and len(self.readers(conv)) == 1
            for conv in self.read[bn]
        )

    def unclear(self, conv: nn.Module) -> str:
        """Tell why it is not known which BN layer follows a convolution.

        Returns:
            The reason. Empty if it is known, or if no BN layer can follow.
        """
        width = getattr(conv, 'out_channels', 0)
        left = [m for m in self.parts if is_bn(m) and m not in self.called]
        may_follow = any(bn.num_features == width for bn in left)
        if conv not in self.called:
            return NOT_CALLED if may_follow else ''
        if conv in self.pending and (may_follow or self.readers(conv)):
            return NOT_ALL_CALLED
        return ''


def pair_layers(model: nn.Module, trace: Trace) -> dict[str, list[str]]:
    """Find the BN layers that read each convolution that BN can be folded into.

    Args:
        model: The network.
        trace: Its forward passes.

    Returns:
        For the name of each such convolution the names of the BN layers. A BN layer
        that cannot be folded is not listed, except where several read one
        convolution.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs: dict[str, list[str]] = {
        name: [] for module, name in names.items() if module in trace.convs
    }
    for conv in trace.called:
        if conv in trace.convs:
            bns = trace.readers(conv)
            if len(bns) > 1 or any(trace.folds(bn) for bn in bns):
                pairs[names[conv]] = [names[bn] for bn in bns]
    return pairs


def pair_by_name(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the BN layer that follows each convolution, from the names of weights.

    The names are those of torchvision and OpenMMLab. Where they do not decide, BN
    follows the convolution whose weights come directly before its own.

    Args:
        weights: A state dict.

    Returns:
        The name of the BN layer for the name of each convolution that has one.
    """
    names = list(dict.fromkeys(key.rpartition('.')[0] for key in weights))
    pairs: dict[str, str] = {}

    def pair(conv: str, bn: str) -> None:
        mean = weights.get(f'{bn}.running_mean')
        kernel = weights.get(f'{conv}.weight')
        if mean is None or kernel is None or kernel.dim() != 4:
            return
        if len(mean) == len(kernel) and bn not in pairs.values():
            pairs.setdefault(conv, bn)

    for conv in names:
        parent, dot, name = conv.rpartition('.')
        if name.isdigit():  # in a Sequential, or in lists as in Res2Net
            pair(conv, f'{parent}{dot}{int(name) + 1}')
            if parent.endswith('convs'):
                pair(conv, f'{parent.removesuffix("convs")}bns.{name}')
        elif re.fullmatch(r'conv\d*', name):
            pair(conv, parent + dot + name.replace('conv', 'bn'))
    for conv, bn in pairwise(names):
        if conv.rpartition('.')[0] == bn.rpartition('.')[0]:
            pair(conv, bn)
    return pairs
