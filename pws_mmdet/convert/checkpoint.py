"""What the converters have in common: a checkpoint is read, checked and written."""

import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from ..compat import load_local_checkpoint
from ..layers import PWSConv2d, ReparamConv2d
from ..utils.files import write_whole


def load_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The weights in the file of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it holds no weights.
    """
    content = load_local_checkpoint(str(checkpoint), map_location='cpu')
    try:
        return weights_of(content)
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None


def weights_of(checkpoint: Any, prefix: str | None = None) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint, those below ``prefix`` without it.

    Raises:
        ValueError: If there are none.
    """
    weights = checkpoint
    for key in ('state_dict', 'model'):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
            break
    weights = {
        key.removeprefix('module.'): value
        for key, value in (weights if isinstance(weights, Mapping) else {}).items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        raise ValueError('it holds no weights')
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        found = {key.split('.')[0] for key in weights}
        weights = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        if not weights:
            names = ', '.join(f'{name}.*' for name in sorted(found)[:5])
            raise ValueError(f'none of its weights is named {prefix}*, but {names}')
    return weights


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
    model = unwrapped(model)
    if type(model)._load_from_state_dict is not nn.Module._load_from_state_dict:
        model._load_from_state_dict(renamed, '', {}, False, [], [], [])
    return renamed


def meta_of(checkpoint: Any) -> Mapping:
    """What a checkpoint says of itself, if anything."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def classes_of(checkpoint: Any) -> tuple[str, ...]:
    """The names of the classes that a checkpoint was trained on, if it has them.

    MMDetection 2 wrote them as ``CLASSES``, beside what is ``dataset_meta`` now.
    """
    meta = meta_of(checkpoint)
    inner = meta.get('dataset_meta')
    for known in (inner if isinstance(inner, Mapping) else {}, meta):
        names = known.get('classes', known.get('CLASSES'))
        if isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names):
            return tuple(names)
    return ()


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
    start = not_finite(unwrapped(model).state_dict()) if model is not None else {}
    bad = [*not_finite(weights, start)]
    if bad:
        raise ValueError(
            f'{source} has NaN or infinity in {first_of(bad)}: its training diverged, '
            'take an earlier checkpoint'
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
    model = unwrapped(model)
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
            f'{first_of(plain)}'
        )
    if plain:
        kind = 'with BN' if has_bn else 'of plain convolutions'
        raise ValueError(
            f'these are the weights of a network {kind}, and this one has PWS in '
            f'{first_of(plain)}. tools/model_converters/bn_to_pws.py converts them'
        )
    if pws:
        raise ValueError(
            'these are the weights of a PWS checkpoint, and this network has other '
            f'convolutions in {first_of(pws)}: name the config that they were trained '
            'with. tools/model_converters/fuse_pws.py makes them plain'
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
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, ReparamConv2d)
        and getattr(weights.get(f'{name}.weight'), 'shape', module.weight.shape)
        != module.weight.shape
    ]
    if names:
        print_log(
            f'The filters of {first_of(names)} have another shape in the checkpoint. '
            'These layers keep the filters and alpha that they were initialized with',
            logger='current',
            level=logging.WARNING,
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without what wraps it to train it (DDP), or to test it (TTA)."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def first_of(names: Sequence[str], count: int = 3) -> str:
    """Some names for a message."""
    more = len(names) - count
    text = ', '.join(map(str, names[:count]))
    return f'{text} and {more} more' if more > 0 else text


def check_out(out: str | Path, suffix: str) -> Path:
    """The path of a file (or, without a suffix, folder) that is to be made.

    Raises:
        ValueError: If it does not end in ``suffix``.
        FileExistsError: If there is such a file or link.
        OSError: If it cannot be made.
    """
    path = Path(out).expanduser()
    if suffix and path.suffix != suffix:
        raise ValueError(f'OUT must end in {suffix}, got {out}')
    if os.path.lexists(path):
        _refuse(path)
    folder = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not folder.is_dir():
        raise NotADirectoryError(f'{out} cannot be written: {folder} is no folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f'{out} cannot be written: {folder} is read-only')
    return path


def write_checkpoint(content: dict[str, Any], out: str | Path) -> None:
    """Write a checkpoint whole or not at all.

    The same content gives the same bytes, whatever the file's name.

    Args:
        content: Such as ``dict(state_dict=weights)``.
        out: The new file, in a folder that is made if there is none.

    Raises:
        ValueError: If ``out`` does not end in .pth.
        FileExistsError: If there is such a file or link.
        OSError: If it cannot be written.
    """
    out = check_out(out, '.pth')
    _write(out, _serialize(content))


def publish_checkpoint(content: dict[str, Any], out: str | Path) -> Path:
    """Write a checkpoint under a name that ends in its hash, and a link to it.

    Args:
        content: As of :func:`write_checkpoint`.
        out: STEM.pth: the file is written as STEM-HASH.pth beside it, with the first
            8 hexadecimal digits of its SHA-256, and ``out`` becomes a link to it.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``out`` does not end in .pth.
        FileExistsError: If ``out`` is something else than a link.
    """
    out = _check_name(out)
    if os.path.lexists(out) and not out.is_symlink():
        _refuse(out)
    data = _serialize(content)
    digest = hashlib.sha256(data).hexdigest()
    path = out.with_name(f'{out.stem}-{digest[:8]}.pth')
    _write(path, data)
    write_whole(out, lambda part: part.symlink_to(path.name))
    return path


def _check_name(out: str | Path) -> Path:
    out = Path(out).expanduser()
    if out.suffix != '.pth':
        raise ValueError(f'OUT must end in .pth, got {out}')
    return out


def _refuse(out: Path) -> None:
    raise FileExistsError(f'{out} exists: move it away, or choose another name')


def _serialize(content: dict[str, Any]) -> memoryview:
    # Into memory: a file's own name would enter its bytes, and so the hash.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _write(path: Path, data: memoryview) -> None:
    write_whole(path, lambda part: part.write_bytes(data))
