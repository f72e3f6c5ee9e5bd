"""Check weights before a network loads them, and load them strictly."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..layers import PWSConv2d, ReparamConv2d
from ..utils.model import unwrap_model
from ..utils.names import first_names


def load_strictly(
    model: nn.Module, weights: Mapping[str, Any], allow_unused: bool = False
) -> list[str]:
    """Load weights that are finite, of the right kind, and complete.

    Args:
        model: The network.
        weights: Tensors by the names of its ``state_dict``.
        allow_unused: Ignore weights that the network has no place for.

    Returns:
        The names of the ignored weights.

    Raises:
        ValueError: If the weights are of another kind of network, are not finite, or do
            not fit.
    """
    weights = {key.removeprefix('module.'): v for key, v in weights.items()}
    check_kind(model, weights)
    check_finite(weights, 'it', model)
    try:
        missing, unused = model.load_state_dict(weights, strict=False)
    except RuntimeError as e:  # each line after the first names one wrong shape
        problems = [first_names([line.strip() for line in str(e).splitlines()[1:]])]
    else:
        problems = [f'they lack {first_names(missing)}'] if missing else []
        if unused and not allow_unused:
            problems.append(f'the network has no {first_names(unused)}')
    if problems:
        raise ValueError(f'the weights do not fit the network: {"; ".join(problems)}')
    return unused


def check_kind(
    model: nn.Module, weights: Mapping[str, Any], as_start: bool = False
) -> None:
    """Check that weights with PWS are for a network with PWS, and others for others.

    If the wrong kind is loaded, the network computes something else, and MMEngine only
    warns of missing names. A layer counts only if the network and the weights have it.

    Args:
        model: The network.
        weights: Tensors by the names of its ``state_dict``.
        as_start: Allow plain convolutions without BN for a network with PWS:
            PWSAlphaInitHook will find their alpha.

    Raises:
        ValueError: If the weights are of the other kind.
    """
    model = unwrap_model(model)
    weights = {key.removeprefix('module.'): v for key, v in weights.items()}
    alphas = {key.rpartition('.alpha')[0] for key in weights if '.alpha' in key}
    # Layers of other packages may have an alpha, for example quantizers.
    places = {
        key.rpartition('.alpha')[0] for key in model.state_dict() if '.alpha' in key
    }
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
            f'{first_names(plain)}. pws-convert converts them'
        )
    if pws:
        raise ValueError(
            'these are the weights of a PWS checkpoint, and this network has other '
            f'convolutions in {first_names(pws)}. Use the config of their training, or '
            'make them plain with pws-fuse'
        )


def check_finite(
    weights: Mapping[str, Tensor], source: str | Path, model: nn.Module | None = None
) -> None:
    """Check that weights have no NaN and no infinity.

    Args:
        weights: Tensors of any shape and dtype, by name.
        source: Where they are from, for the message.
        model: The network that is to load them. Where its own tensors are not finite,
            such as an attention mask of -inf, the weights may be so, too.

    Raises:
        ValueError: If they have. It names the first tensors.
    """
    own = not_finite(unwrap_model(model).state_dict()) if model is not None else {}
    bad = not_finite(weights, own)
    if bad:
        raise ValueError(
            f'{source} has NaN or infinity in {first_names(bad)}: the training '
            'diverged. Take an earlier checkpoint'
        )


def not_finite(
    tensors: Mapping[str, Any], known: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Find NaN and infinity.

    Args:
        tensors: Tensors of any shape and dtype, by name. Other values are skipped.
        known: What an earlier call returned. These places are skipped, and so are
            tensors whose shape has changed.

    Returns:
        For each tensor with such values, a boolean tensor of its shape that is True at
        these values.
    """
    found = {}
    for name, value in tensors.items():
        if not torch.is_tensor(value):
            continue
        bad = ~value.isfinite()
        before = (known or {}).get(name)
        if before is not None:
            same = before.shape == bad.shape
            bad = bad & ~before.to(bad.device) if same else torch.zeros_like(bad)
        if bad.any():
            found[name] = bad
    return found


def renamed_on_loading(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename weights as a detector renames what it loads.

    SemiBaseDetector (SoftTeacher) copies the weights of a supervised detector to its
    student and its teacher. A single-stage detector takes those of an RPN for its head.

    Args:
        model: The network that is to load them.
        weights: Tensors by their names in the checkpoint.

    Returns:
        The tensors by the names of the network's ``state_dict``.
    """
    renamed = dict(weights)
    model = unwrap_model(model)
    if type(model)._load_from_state_dict is not nn.Module._load_from_state_dict:
        model._load_from_state_dict(renamed, '', {}, False, [], [], [])
    return renamed


def warn_of_other_shapes(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Warn of layers whose filters have another shape in a checkpoint.

    A load that is not strict skips their filters and alpha.

    Args:
        model: The network that is to load the weights.
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
