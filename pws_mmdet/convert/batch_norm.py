"""Find which BN layer follows which convolution.

Three sources tell it: a forward pass (:class:`Trace`), the order in which modules were
assigned (:func:`pair_by_order`), and the names in a checkpoint (:func:`pair_by_name`).
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..compat import tree_leaves
from .forward import tensors_in

Run = Callable[[nn.Module], Any]  # calls a network with some batch


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
    """Records in a forward pass which BN layers read the outputs of convolutions.

    Attributes:
        called: The convolutions and BN layers that were called and returned.
        read: For each BN layer, call by call, the convolution that produced its
            input; None for an input that no convolution produced.
        elsewhere: Convolutions whose outputs are also used by other operations.
        bypassed: Modules whose parameters are used outside of their forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = [m for m in model.modules() if is_plain_conv(m) or is_bn(m)]
        self.called: set[nn.Module] = set()
        self.read: dict[nn.Module, list[nn.Module | None]] = {}
        self.elsewhere: set[nn.Module] = set()
        self.bypassed: set[nn.Module] = set()
        self.running: list[nn.Module] = []
        self.made = WeakTensorKeyDictionary()
        self.owners = WeakTensorKeyDictionary()
        for module in parts:
            for parameter in module.parameters():
                self.owners.setdefault(parameter, set()).add(module)
        self.hooks = [
            hook
            for module in parts
            for hook in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave),
            )
        ]

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.running.append(module)
        if is_bn(module):
            x = next(iter((*args, *kwargs.values())))
            self.read.setdefault(module, []).append(self.made.get(x))

    def _leave(self, module: nn.Module, args: tuple, y: Tensor) -> None:
        self.running.pop()
        self.called.add(module)
        if is_plain_conv(module):
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

    def follow(self, model: nn.Module, run: Run) -> None:
        """Call the network, and record the call.

        Args:
            model: The network that the trace was made for.
            run: Calls it.
        """
        try:
            with self:
                outputs = run(model)
        finally:
            for hook in self.hooks:
                hook.remove()
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
            and conv not in self.elsewhere | self.bypassed
            and len(self.readers(conv)) == 1
            for conv in self.read[bn]
        )


def _number(name: str) -> str:
    return name[len(name.rstrip('0123456789')) :]


def _follows(parent: nn.Module, conv: str, bn: str, after: nn.Module | None) -> bool:
    """Tell whether a BN layer is probably called after the convolution before it.

    Args:
        parent: The module that has both.
        conv: Name of the convolution in it.
        bn: Name of the BN layer, the next module after the convolution.
        after: The next module after the BN layer.
    """
    if isinstance(parent, nn.Sequential):
        return True
    if isinstance(parent, ConvModule):
        return parent.order.index('norm') == parent.order.index('conv') + 1
    if after is not None and is_bn(after):  # the order conv1, conv2, bn1, bn2
        return False
    listed = isinstance(parent, nn.ModuleList)
    return listed or not _number(conv) or _number(conv) == _number(bn)


def pair_layers(model: nn.Module, trace: Trace) -> dict[str, list[str]]:
    """Find the BN layers that read each plain convolution.

    For layers that the trace did not see, :func:`pair_by_order` decides.

    Args:
        model: The network.
        trace: Its forward pass.

    Returns:
        For the name of each plain convolution the names of the BN layers. A BN layer
        that cannot be folded is not listed, except where several read one
        convolution.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs: dict[str, list[str]] = {
        name: [] for module, name in names.items() if is_plain_conv(module)
    }
    for conv in trace.called:
        if is_plain_conv(conv):
            bns = trace.readers(conv)
            if len(bns) > 1 or any(trace.folds(bn) for bn in bns):
                pairs[names[conv]] = [names[bn] for bn in bns]
    for conv, bn in pair_by_order(model):
        bns = pairs[names[conv]]
        if not {conv, bn} & trace.called and names[bn] not in bns:
            bns.append(names[bn])
    return pairs


def pair_by_order(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Find pairs of a plain convolution and a BN layer that is assigned right after it.

    Args:
        model: The network.
    """
    pairs = []
    for parent in model.modules():
        children = [(n, m) for n, m in parent._modules.items() if m is not None]
        for i, ((name, conv), (bn_name, bn)) in enumerate(pairwise(children)):
            if not is_plain_conv(conv) or not is_bn(bn):
                continue
            after = children[i + 2][1] if i + 2 < len(children) else None
            fits = bn.num_features == conv.out_channels
            if fits and _follows(parent, name, bn_name, after):
                pairs.append((conv, bn))
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
