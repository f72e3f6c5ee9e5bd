"""Fold BN layers into the convolutions that they follow."""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..utils.isolation import isolated
from ..utils.log import warn
from ..utils.names import first_names
from .batch_norm import Trace, is_bn, is_plain_conv, pair_layers
from .first_pass import PassEnded, Run, runs_on
from .forward import tensors_in
from .fuse import plain_like
from .layer import Layer
from .others import reason_to_stay
from .subclasses import only_convolves, plain_equivalent

# Heads behind proposals: a rounding error may give them other proposals.
UNALIGNED = (r'(^|\.)roi_head\.',)


def fold_bn(
    weight: Tensor, bias: Tensor | None, bn: Mapping[str, Tensor], eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Fold BN into the convolution before it.

    Args:
        weight: Filters of the convolution, (O, ...).
        bias: Its bias, (O,), or None.
        bn: ``running_mean`` and ``running_var`` of BN, and its ``weight`` and ``bias``
            if it has them, (O,) each.
        eps: eps of BN.

    Returns:
        Filters and bias, (O,), of the folded convolution, in fp64.
    """
    std = (bn['running_var'].double() + eps).sqrt()
    gain = 1 / std
    if bn.get('weight') is not None:
        gain = gain * bn['weight'].double()
    mean = bn['running_mean'].double()
    if bias is not None:
        mean = mean - bias.double()
    folded = -mean * gain
    if bn.get('bias') is not None:
        folded = folded + bn['bias'].double()
    gain = gain.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.double() * gain, folded


class FoldedBatchNorm(nn.Identity):
    """The place of a BN layer that was folded into a convolution.

    It refuses the weights of the BN layer. The convolution has taken them over, so that
    the weights of the network with BN do not fit it any more.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if f'{prefix}running_mean' in state_dict:
            raise ValueError(
                f'these are the weights of a network with BN, and {prefix[:-1]} was '
                'folded into a convolution. Load them before the conversion'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module in place, under all names that it has in a network.

    Args:
        model: The network.
        name: One name of the module that is replaced.
        new: The module that takes its place.
    """
    old = model.get_submodule(name)
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new


@isolated(0)
def fold_batch_norm(
    model: nn.Module,
    exclude: Sequence[str] = (),
    runs: Sequence[Run] | None = None,
    unaligned: Sequence[str] = UNALIGNED,
) -> tuple[nn.Module, list[Layer]]:
    """Copy a network, and fold the BN layers of the copy into its convolutions.

    A BN layer is folded if, in all forward passes, it reads only outputs of
    convolutions, and nothing else reads these outputs. All other BN layers stay, also
    those that no forward pass calls: their place in the network is not known. A warning
    names convolutions that are not called.

    Args:
        model: The network. It is not changed.
        exclude: Regular expressions, searched in the names of convolutions, for those
            that are not to be converted. BN is folded into them, too.
        runs: Call a network with images. One after the other is used, until all
            convolutions and BN layers were called. By default an image of noise is
            used. If the network raises an error on it, what was called until then
            counts.
        unaligned: Regular expressions for the names of layers whose inputs in the
            network and in its copy do not correspond. The check stops at the first of
            these layers.

    Returns:
        The copy in evaluation mode, in which convolutions have a bias and folded BN
        layers are ``FoldedBatchNorm``; and a record of each of its convolutions.

    Raises:
        ValueError: If the copy computes something else than the network.
    """
    original = _plain_copy(model)
    convs = [m for m in original.modules() if is_plain_conv(m) or only_convolves(m)]
    trace = Trace(original, convs)
    runs = trace.follow(original, runs_on(model, None) if runs is None else runs)
    folded = copy.deepcopy(original)
    layers, absorbed = [], set()
    for name, bns in pair_layers(original, trace).items():
        conv = folded.get_submodule(name)
        module = original.get_submodule(name)
        layer = Layer(name, called=module in trace.called)
        layers.append(layer)
        if any(re.search(pattern, name) for pattern in exclude):
            layer.kept = 'excluded'
        elif not is_plain_conv(module):
            layer.kept = reason_to_stay(module)
        if conv.weight[0].numel() < 2:
            layer.kept = 'its filters have a single weight, and no variance'
        if reason := _reason_against_folding(module, bns, original, trace):
            layer.kept = reason
            continue
        weight, bias = conv.weight, conv.bias
        if bns:
            bn = original.get_submodule(bns[0])
            state = {**dict(bn.named_parameters()), **dict(bn.named_buffers())}
            weight, bias = fold_bn(weight, bias, state, bn.eps)
            absorbed.add(bns[0])
        replace_module(folded, name, _with_filters(conv, weight, bias))
    for name in absorbed:
        replace_module(folded, name, FoldedBatchNorm().eval())
    if any(is_bn(module) for module in folded.modules()):
        _warn_of_uncalled(layers, trace)
    for run in runs:
        _check_same(original, folded, run, absorbed, unaligned)
    return folded, layers


def _reason_against_folding(
    conv: nn.Module, bns: Sequence[str], model: nn.Module, trace: Trace
) -> str:
    """Tell why a convolution and the BN layers that read it stay as they are."""
    if conv in trace.bypassed:
        return 'its weights are used outside of its forward pass'
    if len(bns) > 1:
        return f'its outputs go to {len(bns)} BN layers'
    if bns and model.get_submodule(bns[0]).running_mean is None:
        return 'its BN has no running statistics'
    return trace.unclear(conv)


def _warn_of_uncalled(layers: Sequence[Layer], trace: Trace) -> None:
    uncalled = [layer.name for layer in layers if not layer.called]
    text = ''
    if trace.error:
        text = f'Without images, the forward pass ended with {trace.error}. '
    if uncalled:
        text += (
            f'No forward pass called {first_names(uncalled)}. It is not known what '
            'reads their outputs, so BN stays where it may follow them. '
        )
    if text:
        warn(f'{text}Give batches that reach all layers, or the option forward')


def _plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network, with plain convolutions where they compute the same.

    Such are MMCV's ConvWS and ConvAWS, and subclasses that pad as nn.Conv2d can.
    """
    model = copy.deepcopy(model)
    model.eval()
    for module in model.modules():
        if getattr(module, 'efficient_conv_bn_eval_forward', None):
            # With this option a ConvModule does not call its convolution.
            module.turn_on_efficient_conv_bn_eval(False)
    for name, module in list(model.named_modules()):
        if type(module) in (ConvWS2d, ConvAWS2d):
            replace_module(model, name, plain_like(module))
        elif not is_plain_conv(module) and (plain := plain_equivalent(module)):
            replace_module(model, name, plain)
    return model


def _with_filters(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    new = copy.deepcopy(conv)
    new.weight.copy_(weight)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    new.bias = nn.Parameter(bias.to(conv.weight), conv.weight.requires_grad)
    return new


# --- the check ---------------------------------------------------------------------


def _states(
    model: nn.Module, run: Run, bns: Collection[str]
) -> list[tuple[str, Tensor, torch.dtype]]:
    """Summarize the inputs of layers and the outputs of BN layers in a forward pass.

    Returns:
        In the order of the calls: the name of the layer; mean and root mean square, of
        each channel of a feature map, or of any other tensor as a whole; its dtype.
    """
    states = []

    def note(name: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            # Tensors that are no feature maps, such as queries, may come in any order.
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
        with isolated(0):  # both networks draw the same random numbers
            outputs = run(model)
    except PassEnded:
        outputs = ()
    finally:
        for hook in hooks:
            hook.remove()
    # Detections are not compared: a rounding error can change what NMS returns.
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
    """Raise a ValueError if folding BN changed what a network computes."""
    for (name, a, dtype), (other, b, _) in zip(
        _states(model, run, bns), _states(folded, run, bns), strict=False
    ):
        behind = any(re.search(pattern, name) for pattern in unaligned)
        if behind or name != other or a.shape != b.shape:
            return
        tolerance = max(1e-2, 16 * torch.finfo(dtype).eps) * a[1].nan_to_num().max()
        if not torch.allclose(a, b, rtol=0, atol=float(tolerance), equal_nan=True):
            raise ValueError(
                'BN cannot be folded into the convolutions of this network: folding '
                f'changes the values at {name}'
            )
