"""What the converters have in common: a checkpoint is read, checked and written."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..compat import load_local_checkpoint


def load_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint, or that is one, on the CPU.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it has no state dict.
    """
    content = load_local_checkpoint(str(checkpoint), map_location='cpu')
    weights = content.get('state_dict', content) if isinstance(content, dict) else {}
    is_state_dict = isinstance(weights, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor)
        for key, value in weights.items()
    )
    if not weights or not is_state_dict:
        raise ValueError(f'{checkpoint} has no state_dict: no tensors by their names')
    return dict(weights)


def check_finite(weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Raise a ValueError that names the first tensors that hold NaN or infinity.

    Args:
        weights: Tensors of any shape and dtype, by name.
        source: Where they are from, for the message.
    """
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
        raise ValueError(
            f'{source} has NaN or infinity in {", ".join(bad[:3])}{more}: its training '
            'diverged, take an earlier checkpoint'
        )


def write_checkpoint(content: dict[str, Any], out: str | Path) -> None:
    """Write a checkpoint whole or not at all.

    The same content gives the same bytes, whatever the file's name.

    Args:
        content: Such as ``dict(state_dict=weights)``.
        out: The new file, in a folder that is made if there is none.

    Raises:
        ValueError: If ``out`` does not end in .pth.
        FileExistsError: If there is such a file or link.
    """
    out = _check_name(out)
    if os.path.lexists(out):
        _refuse(out)
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
    _make(out, lambda part: part.symlink_to(path.name))
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
    _make(path, lambda part: part.write_bytes(data))


def _make(path: Path, make: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        make(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
