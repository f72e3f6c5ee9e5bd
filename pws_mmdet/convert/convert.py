"""Networks with batch normalization, and plain ones, into norm-free ones."""

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvAWS2d, ConvModule, ConvWS2d
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..compat import tree_leaves
from ..layers import PWSConv2d
from ..layers.reparam_conv import ReparamConv2d, conv_like
from .calibrate import (
    ConvertedLayer,
    Layer,
    center_network,
    noise_for,
    run_model,
)
from .equalize import MAX_SCALE, tensors_in
from .fuse_conv_bn import plain_like

# These heads see a network's proposals: the converted network has others.
UNALIGNED = (r'(^|\.)roi_head\.',)

Run = Callable[[nn.Module], Any]


def fold_bn(
    weight: Tensor, bias: Tensor | None, bn: Mapping[str, Tensor], eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A convolution with the BN that follows it.

    Args:
        weight: Shape (O, ...).
        bias: Shape (O,) or None.
        bn: BN's ``running_mean`` and ``running_var`` and, if it has them, its
            ``weight`` and ``bias``, each (O,).
        eps: BN's.

    Returns:
        Filters, bias, and the mean and standard deviation of what the filters put
        out, in fp64.
    """
    std = (bn['running_var'].double() + eps).sqrt()
    gain = 1 / std
    if bn.get('weight') is not None:
        gain = gain * bn['weight'].double()
    mean = bn['running_mean'].double()
    if bias is not None:
        mean = mean - bias.double()
    mean = mean * gain
    folded = -mean
    if bn.get('bias') is not None:
        folded = folded + bn['bias'].double()
    std = std * gain.abs()
    gain = gain.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.double() * gain, folded, mean, std


def check_takes_filters(conv: PWSConv2d) -> None:
    """Raise a ValueError if alpha or beta of a layer cannot hold given filters."""
    if conv.alpha is None or conv.alpha.numel() != conv.out_channels:
        raise ValueError(
            f"alpha must be 'channel' to hold given filters, not {conv.alpha_mode!r}"
        )
    if conv.bias is None:
        raise ValueError('beta must be True to hold given filters')


@torch.no_grad()
def set_filters(conv: PWSConv2d, filters: Tensor, bias: Tensor) -> None:
    """Make a PWS convolution compute what given filters do.

    W gets He variance, 2 / n, so that gamma and the learning rate mean what they
    mean for a network that starts from scratch, and alpha what the filters need for
    that, exactly.

    Args:
        conv: With an alpha per channel and with beta.
        filters: Of zero mean, (O, c_in / groups, k, k).
        bias: (O,).

    Raises:
        ValueError: If the layer's alpha or beta cannot hold them.
    """
    check_takes_filters(conv)
    n = filters[0].numel()
    std = filters.flatten(1).std(1, correction=0)
    he = 2 / n
    alive = std > 0
    # a filter of zeros keeps the random W it has, with an alpha of 0
    w = filters * (he**0.5 / std.where(alive, 1)).reshape(-1, 1, 1, 1)
    keep = alive.reshape(-1, 1, 1, 1)
    conv.weight.copy_(torch.where(keep, w.to(conv.weight), conv.weight))
    gain = (he + conv.gamma) ** 0.5 / (he**0.5 if conv.scale else 1) / he**0.5
    conv.alpha.copy_(std * gain)
    conv.bias.copy_(bias)


def _is_plain_conv(module: nn.Module) -> bool:
    # spectral norm and its like make the weight, and it is no parameter then
    return (
        type(module) in (nn.Conv2d, MMCVConv2d)
        and 'weight' in module._parameters
        and 'forward' not in vars(module)
    )


def _is_other_conv(module: nn.Module) -> bool:
    weight = getattr(module, 'weight', None)  # also of what is no _ConvNd, such as DCN
    is_conv = isinstance(weight, Tensor) and weight.dim() >= 3
    return is_conv and not _is_plain_conv(module) and not isinstance(module, PWSConv2d)


def _is_bn(module: nn.Module) -> bool:
    """Whether it is BN and nothing else: some subclasses bring an activation."""
    forward = getattr(type(module), 'forward', None)
    return (
        isinstance(module, _BatchNorm)
        and forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        and 'forward' not in vars(module)
    )


class _Trace(TorchDispatchMode):
    """Sees in a forward pass which BN layers read what convolutions put out.

    Attributes:
        called: The convolutions and BN layers that were called, without an error.
        read: For each BN layer, who made its inputs, call by call; None if it was no
            convolution.
        elsewhere: Convolutions whose outputs something else uses, too.
        bypassed: Modules whose parameters are used beside their own forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = [m for m in model.modules() if _is_plain_conv(m) or _is_bn(m)]
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
        if _is_bn(module):
            x = next(iter((*args, *kwargs.values())))
            self.read.setdefault(module, []).append(self.made.get(x))

    def _leave(self, module: nn.Module, args: tuple, y: Tensor) -> None:
        self.running.pop()
        self.called.add(module)
        if _is_plain_conv(module):
            self.made[y] = module

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not (name.startswith('new_') or name.endswith('_like')):  # shapes alone
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    self._use(x)
        return func(*args, **(kwargs or {}))

    def _use(self, x: Tensor) -> None:
        running = self.running[-1] if self.running else None
        owners = self.owners.get(x)
        if owners and running not in owners:
            self.bypassed |= owners
        if x in self.made and not (running and _is_bn(running)):
            self.elsewhere.add(self.made[x])

    def follow(self, model: nn.Module, run: Run) -> None:
        """Call the network."""
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
        """The BN layers that read what a convolution puts out."""
        return [bn for bn, makers in self.read.items() if conv in makers]

    def folds(self, bn: nn.Module) -> bool:
        """Whether a BN layer can become part of all whose outputs it reads."""
        return bn not in self.bypassed and all(
            conv is not None
            and conv not in self.elsewhere | self.bypassed
            and len(self.readers(conv)) == 1
            for conv in self.read[bn]
        )


def _number(name: str) -> str:
    return re.search(r'\d*$', name).group()


def _follows(parent: nn.Module, conv: str, bn: str, after: nn.Module | None) -> bool:
    """Whether BN, written next to a convolution, is likely to be called next."""
    if isinstance(parent, nn.Sequential):
        return True
    if isinstance(parent, ConvModule):
        return parent.order.index('norm') == parent.order.index('conv') + 1
    if after is not None and _is_bn(after):  # conv1, conv2, bn1, bn2
        return False
    listed = isinstance(parent, nn.ModuleList)
    return listed or not _number(conv) or _number(conv) == _number(bn)


def _pairs(model: nn.Module, trace: _Trace) -> dict[str, list[str]]:
    """Names of the plain convolutions, and of the BN layers that each goes to.

    Of layers that no forward pass has shown, the BN written next to a convolution.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs: dict[str, list[str]] = {
        name: [] for module, name in names.items() if _is_plain_conv(module)
    }
    for conv in trace.called:
        if _is_plain_conv(conv):
            bns = trace.readers(conv)
            if len(bns) > 1 or any(trace.folds(bn) for bn in bns):
                pairs[names[conv]] = [names[bn] for bn in bns]
    for parent in model.modules():
        children = [(n, m) for n, m in parent._modules.items() if m is not None]
        for i, ((name, conv), (bn_name, bn)) in enumerate(pairwise(children)):
            if {conv, bn} & trace.called or not _is_plain_conv(conv) or not _is_bn(bn):
                continue
            after = children[i + 2][1] if i + 2 < len(children) else None
            fits = bn.num_features == conv.out_channels
            bns = pairs[names[conv]]
            if fits and _follows(parent, name, bn_name, after) and names[bn] not in bns:
                bns.append(names[bn])
    return pairs


def _states(
    model: nn.Module, run: Run, bns: Collection[str]
) -> list[tuple[str, Tensor, torch.dtype]]:
    """What layers read, and BN layers put out, in a forward pass, in a few numbers."""
    states = []

    def note(name: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            # of what is no feature map, queries for one, the order may differ
            axes = (0, 2, 3) if x.dim() == 4 else tuple(range(x.dim()))
            state = x.double()
            state = torch.stack([state.mean(axes), state.square().mean(axes).sqrt()])
            states.append((name, state, x.dtype))

    hooks = []
    for name, module in model.named_modules():
        if name in bns:
            hooks.append(
                module.register_forward_hook(lambda m, x, y, n=name: note(n, y))
            )
        elif not any(module.children()) and any(True for _ in module.parameters()):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, x, n=name: note(n, x[0] if x else None)
                )
            )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            outputs = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    # what comes out of non-maximum suppression hangs on a rounding
    for x in [] if isinstance(model, BaseModel) else tensors_in(outputs):
        note('the output', x)
    return states


def _check_same(
    model: nn.Module,
    folded: nn.Module,
    run: Run,
    bns: Collection[str],
    unaligned: Sequence[str],
) -> None:
    """Raise ValueError if a network whose BN was folded computes something else."""
    for (name, a, dtype), (other, b, _) in zip(
        _states(model, run, bns), _states(folded, run, bns), strict=False
    ):
        behind = any(re.search(pattern, name) for pattern in unaligned)
        if behind or name != other or a.shape != b.shape:
            return
        tolerance = max(1e-2, 16 * torch.finfo(dtype).eps) * a[1].nan_to_num().max()
        if not torch.allclose(a, b, rtol=0, atol=float(tolerance), equal_nan=True):
            raise ValueError(
                'BN cannot be folded into the convolutions of this network: it '
                f'changes what comes to {name}'
            )


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module everywhere where a network has it."""
    old = model.get_submodule(name)
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new


def _plain_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    new = copy.deepcopy(conv)
    new.weight.copy_(weight)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    new.bias = nn.Parameter(bias.to(conv.weight), conv.weight.requires_grad)
    return new


@torch.no_grad()
def fold_batch_norm(
    model: nn.Module,
    exclude: Sequence[str] = (),
    run: Run | None = None,
    unaligned: Sequence[str] = UNALIGNED,
) -> tuple[nn.Module, list[Layer]]:
    """A copy of a network whose BN layers are part of its convolutions.

    BN becomes part of the convolutions whose outputs, and nothing else, it reads in
    a forward pass, if nothing else reads them. Any other BN stays. Of layers that
    the pass does not call, BN follows the convolution that it is written next to.

    Args:
        model: The network.
        exclude: Regular expressions, searched in the names of convolutions that are
            not to be converted.
        run: Calls a network with a image. The default calls nothing.
        unaligned: As of :func:`convert_to_pws`: from these layers on, the outputs of
            the copy are not compared with those of the network.

    Returns:
        The copy, in evaluation mode: its convolutions have a bias, and its BN layers
        that follow one are ``nn.Identity``; and its convolutions.

    Raises:
        ValueError: If the copy computes something else than the network.
    """
    run = run or (lambda model: None)
    original = copy.deepcopy(model)
    original.eval()
    for module in original.modules():
        if getattr(module, 'efficient_conv_bn_eval_forward', None):
            module.turn_on_efficient_conv_bn_eval(False)  # calls no convolution
    for name, module in list(original.named_modules()):
        if type(module) in (ConvWS2d, ConvAWS2d):
            _replace(original, name, plain_like(module))
    trace = _Trace(original)
    trace.follow(original, run)
    bypassed = {n for n, m in original.named_modules() if m in trace.bypassed}
    pairs = _pairs(original, trace)
    model = copy.deepcopy(original)
    layers, absorbed = [], set()
    for name, bns in pairs.items():
        conv = model.get_submodule(name)
        layer = Layer(name)
        layers.append(layer)
        if any(re.search(pattern, name) for pattern in exclude):
            layer.kept = 'excluded'
        if conv.weight[0].numel() < 2:
            layer.kept = 'its filters have a single weight, and no variance'
        if name in bypassed:
            layer.kept = 'its weights are used beside its forward pass'
            continue
        if len(bns) > 1:
            layer.kept = f'its outputs go to {len(bns)} BN layers'
            continue
        weight, bias = conv.weight, conv.bias
        if bns:
            bn = original.get_submodule(bns[0])
            if bn.running_mean is None:
                layer.kept = 'its BN has no running statistics'
                continue
            state = {**dict(bn.named_parameters()), **dict(bn.named_buffers())}
            weight, bias, *moments = fold_bn(weight, bias, state, bn.eps)
            layer.mean, layer.std = moments
            absorbed.add(bns[0])
        layer.scales = True
        _replace(model, name, _plain_conv(conv, weight, bias))
    for name in absorbed:
        _replace(model, name, nn.Identity().eval())
    _check_same(original, model, run, absorbed, unaligned)
    return model, layers


def _first_pass(
    model: nn.Module, batches: Sequence[Any] | None, forward: Callable
) -> Run:
    """Calls a network with the first batch, or with noise as far as it takes that."""
    if batches is not None:
        return lambda net: forward(net, batches[0])
    noise = noise_for(model)

    def run(net: nn.Module) -> Any:
        try:
            return forward(net, noise)
        except Exception:  # whatever a network raises that wants something else
            return None

    return run


@torch.no_grad()
def convert_to_pws(
    model: nn.Module,
    calibration_batches: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    *,
    gamma: float = 1e-4,
    relative_gamma: bool = False,
    forward: Callable[[nn.Module, Any], Any] = run_model,
    max_scale: float = MAX_SCALE,
    max_positions: int = 2**15,
    unaligned: Sequence[str] = UNALIGNED,
    sweeps: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, list[ConvertedLayer]]:
    """Turn a trained network with BN, or without any norm, into one with PWS.

    Every pair of an ``nn.Conv2d`` and a BN layer, and every lone ``nn.Conv2d``,
    becomes a PWSConv2d, and the BN layers that were absorbed become ``nn.Identity``.
    MMCV's ConvWS and ConvAWS count as the plain convolutions that they compute.
    Other convolutions (1D, 3D, transposed, deformable, subclasses), and other norm
    layers, which keep no statistics, stay; the report names the convolutions.
    PWS filters have zero mean, so a network cannot be converted exactly. With
    images, each layer's filters are fitted in the order of execution by least
    squares, from what the network converted so far feeds it to what the original
    layer put out, or, where that is added to something at once, as in a residual
    block, to what then makes the original sum. Without any, each filter loses its
    sum, and beta takes up what BN's statistics say that it contributed. Before either,
    the network's channels are scaled such that little is lost: see
    :mod:`pws_mmdet.convert.equalize`. What intermediate layers put out is therefore
    scaled, too.

    Args:
        model: The trained network. It is not changed.
        calibration_batches: Batches as ``forward`` takes them, of images as the
            network was trained on; some dozens of images will do. They are kept in
            memory. None converts without data, which loses much more.
        exclude: Regular expressions, searched in the names of convolutions that are
            to stay plain, with their BN, and scales of their channels, in them.
        gamma, relative_gamma: As of :class:`PWSConv2d`. The outputs do not depend
            on them.
        forward: Calls a network with a batch. The default takes ``test_step`` of
            MMEngine's models and ``model(batch)`` of others.
        max_scale: Bound of the factors, and of their inverses, by which the channels
            of the network are scaled first. A larger one, such as 10, loses less if
            the network is not to be trained any more; if it is, it calls for a small
            learning rate. 1 scales nothing.
        max_positions: Output positions, at most, that a layer is fitted to.
        unaligned: Regular expressions for the names of layers whose inputs in the
            two networks do not correspond, as in heads that see proposals: the best
            zero-mean filters for the inputs that they get are taken.
        sweeps: How often all layers are fitted. What the first sweep leaves in a sum
            of several layers the second one divides among them.
        seed: Of the choice of positions.
        progress: Show a progress bar.

    Returns:
        The converted network in evaluation mode, in the precision and on the device
        of ``model``, and what became of each convolution, in the order of
        conversion. Parameters of frozen layers are frozen.

    Raises:
        ValueError: If there is nothing to convert, a weight is not finite,
            ``max_scale`` or ``sweeps`` is below 1, or the images are none, or
            reach no layer.

    Source: no paper's; the network is approximated layer by layer.
    """
    while is_model_wrapper(model):
        model = model.module
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f'The weight {name} has values that are not finite')
    if not max_scale >= 1:
        raise ValueError(f'max_scale must be 1 or more, got {max_scale}')
    if sweeps < 1:
        raise ValueError(f'sweeps must be 1 or more, got {sweeps}')
    if calibration_batches is not None:
        calibration_batches = list(calibration_batches)
        if not calibration_batches:
            raise ValueError('There are no calibration images: give some, or None')
    alone = _is_plain_conv(model)
    if alone:
        model = nn.Sequential(model)  # in which it can be replaced
    run = _first_pass(model, calibration_batches, forward)
    plain, layers = fold_batch_norm(model, exclude, run, unaligned)
    if all(layer.kept for layer in layers):
        already = any(isinstance(m, ReparamConv2d) for m in model.modules())
        reasons = {layer.kept for layer in layers}
        raise ValueError(
            'There is nothing to convert: '
            + ('; '.join(sorted(reasons)) or 'the network has no nn.Conv2d')
            + (', but has PWS convolutions already' if already else '')
        )
    filters, report = center_network(
        plain,
        layers,
        calibration_batches,
        forward=forward,
        max_scale=max_scale,
        max_positions=max_positions,
        unaligned=unaligned,
        sweeps=sweeps,
        seed=seed,
        progress=progress,
    )
    report += [
        ConvertedLayer(name, 'kept', reason=f'it is a {type(module).__name__}')
        for name, module in plain.named_modules()
        if _is_other_conv(module)
    ]
    kept = {layer.name for layer in layers if layer.kept}
    for name, (weight, bias) in filters.items():
        conv = plain.get_submodule(name)
        if name in kept:
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
            continue
        pws = conv_like(conv, PWSConv2d, gamma=gamma, relative_gamma=relative_gamma)
        set_filters(pws, weight, bias)
        _replace(plain, name, pws.eval().requires_grad_(conv.weight.requires_grad))
    return plain[0] if alone else plain, report
