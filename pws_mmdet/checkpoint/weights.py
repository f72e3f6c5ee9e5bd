"""Check weights before a network takes them, and load them strictly."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..layers import PWSConv2d, ReparamConv2d
from ..utils.model import unwrap_model
from ..utils.names import first_names


def renamed_on_loading(
    model: nn.Module, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give weights the names under which a model takes them.

    Some detectors rename what they load: SemiBaseDetector (SoftTeacher) gives the
    weights of a supervised detector to its student and its teacher, a single-stage
    detector takes those of an RPN for its head.

    Args:
        model: The network that is to take them.
        weights: Tensors by their names in the checkpoint.
    """
    renamed = dict(weights)
    model = unwrap_model(model)
    if type(model)._load_from_state_dict is not nn.Module._load_from_state_dict:
        model._load_from_state_dict(renamed, '', {}, False, [], [], [])
    return renamed


def check_finite(
    weights: Mapping[str, torch.Tensor],
    source: str | Path,
    model: nn.Module | None = None,
) -> None:
    """Raise a ValueError that names the first tensors that hold NaN or infinity.

    Args:
        weights: Tensors of any shape and dtype, by name.
        source: Where they are from, for the message.
        model: The network that is to take them. Where one of its own tensors is not
            finite, such as a mask of -inf for attention, the weights need not be.
    """
    start = not_finite(unwrap_model(model).state_dict()) if model is not None else {}
    bad = [*not_finite(weights, start)]
    if bad:
        raise ValueError(
            f'{source} has NaN or infinity in {first_names(bad)}: its training '
            'diverged, take an earlier checkpoint'
        )


def not_finite(
    tensors: Mapping[str, Any], start: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Find NaN and infinity.

    Args:
        tensors: Tensors of any shape and dtype, by name; anything else is skipped.
        start: What this function returned for the same tensors earlier. What was not
            finite then does not count, nor does a tensor of another shape than then.

    Returns:
        For each tensor with such values, by name, where they are: a boolean tensor of
        the same shape.
    """
    found = {}
    for name, value in tensors.items():
        if not torch.is_tensor(value):
            continue
        bad = ~value.isfinite()
        known = (start or {}).get(name)
        if known is not None:
            same = known.shape == bad.shape
            bad = bad & ~known.to(bad.device) if same else torch.zeros_like(bad)
        if bad.any():
            found[name] = bad
    return found


def check_kind(
    model: nn.Module, weights: Mapping[str, Any], as_start: bool = False
) -> None:
    """Raise a ValueError if weights with PWS are for a network without, or reversely.

    Loaded nevertheless, they make a network that computes something else, and
    MMEngine only warns of missing names. Layers that only one of both has do not
    count.

    Args:
        model: The network that is to take them.
        weights: Tensors by the names of its ``state_dict``.
        as_start: A network with PWS may start from filters of plain convolutions
            without BN: PWSAlphaInitHook finds their alpha.
    """
    model = unwrap_model(model)
    weights = {key.removeprefix('module.'): v for key, v in weights.items()}
    alphas = {key.rpartition('.alpha')[0] for key in weights if '.alpha' in key}
    own = model.state_dict()
    # Convolutions of other people may have an alpha, such as that of a quantizer.
    places = {key.rpartition('.alpha')[0] for key in own if '.alpha' in key}
    plain, pws = [], []
    for name, module in model.named_modules():
        kernel = weights.get(f'{name}.weight')
        if not isinstance(module, nn.Conv2d) or getattr(kernel, 'ndim', 0) != 4:
            continue
        if not isinstance(module, PWSConv2d):
            pws += [name] if name in alphas - places else []
        elif module.alpha is not None and name not in alphas:
            plain.append(name)
    has_bn = any(key.endswith('.running_mean') for key in weights)
    if plain and as_start and (alphas or not has_bn):
        return
    if plain and alphas:
        raise ValueError(
            'these are the weights of a network with other convolutions than PWS in '
            f'{first_names(plain)}'
        )
    if plain:
        kind = 'with BN' if has_bn else 'of plain convolutions'
        raise ValueError(
            f'these are the weights of a network {kind}, and this one has PWS in '
            f'{first_names(plain)}. tools/model_converters/bn_to_pws.py converts them'
        )
    if pws:
        raise ValueError(
            'these are the weights of a PWS checkpoint, and this network has other '
            f'convolutions in {first_names(pws)}: name the config that they were '
            'trained with. tools/model_converters/fuse_pws.py makes them plain'
        )


def warn_of_other_shapes(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Warn once of layers whose filters in a checkpoint have another shape.

    A load that is not strict leaves out their filters, and with them alpha.

    Args:
        model: The network that is to take the weights.
        weights: Tensors by the names of its ``state_dict``.
    """
    names = [
        name
        for name, module in unwrap_model(model).named_modules()
        if isinstance(module, ReparamConv2d)
        and getattr(weights.get(f'{name}.weight'), 'shape', module.weight.shape)
        != module.weight.shape
    ]
    if names:
        print_log(
            f'The filters of {first_names(names)} have another shape in the '
            'checkpoint. These layers keep the filters and alpha that they were '
            'initialized with',
            logger='current',
            level=logging.WARNING,
        )


def load_strictly(
    model: nn.Module, weights: Mapping[str, Any], allow_unused: bool = False
) -> list[str]:
    """Load finite weights of the right kind that give a value to all of a model.

    Args:
        model: The network.
        weights: Tensors by the names of its ``state_dict``.
        allow_unused: Weights that the network has no place for are no error.

    Returns:
        The names of the weights that the network has no place for.

    Raises:
        ValueError: If they are of another kind of network, are not finite, or do not
            fit.
    """
    weights = {key.removeprefix('module.'): v for key, v in weights.items()}
    check_kind(model, weights)
    check_finite(weights, 'it', model)
    try:
        missing, unused = model.load_state_dict(weights, strict=False)
    except RuntimeError as e:  # the line after the first name one wrong shape each
        problems = [first_names([line.strip() for line in str(e).splitlines()[1:]])]
    else:
        problems = [f'they lack {first_names(missing)}'] if missing else []
        if unused and not allow_unused:
            problems.append(f'the network has no {first_names(unused)}')
    if problems:
        raise ValueError(f'the weights do not fit the network: {"; ".join(problems)}')
    return unused
