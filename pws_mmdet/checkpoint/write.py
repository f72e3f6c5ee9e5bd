"""Write checkpoints whole or not at all, and under names that hold their hash."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from ..utils.files import check_new_path, write_whole


def write_checkpoint(content: dict[str, Any], out: str | Path) -> None:
    """Write a checkpoint whole or not at all.

    The same content gives the same bytes, whatever the name of the file is.

    Args:
        content: Such as ``dict(state_dict=weights)``.
        out: The new file. Its folder is made if there is none.

    Raises:
        ValueError: If ``out`` does not end in .pth.
        FileExistsError: If there is such a file or link.
        OSError: If it cannot be written.
    """
    path = check_new_path(out, '.pth')
    data = _serialize(content)
    write_whole(path, lambda part: part.write_bytes(data))


def publish_checkpoint(content: dict[str, Any], out: str | Path) -> Path:
    """Write a checkpoint under a name that ends in its hash, and a link to it.

    Args:
        content: As of ``write_checkpoint``.
        out: STEM.pth. The file is written as STEM-HASH.pth beside it, where HASH is the
            first 8 hexadecimal digits of its SHA-256, and ``out`` becomes a link to it.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``out`` does not end in .pth.
        FileExistsError: If ``out`` exists and is not a link.
    """
    out = check_new_path(out, '.pth', or_link=True)
    data = _serialize(content)
    digest = hashlib.sha256(data).hexdigest()
    path = out.with_name(f'{out.stem}-{digest[:8]}.pth')
    write_whole(path, lambda part: part.write_bytes(data))
    write_whole(out, lambda part: part.symlink_to(path.name))
    return path


def _serialize(content: dict[str, Any]) -> memoryview:
    # To memory: torch.save to a file puts the name of the file into its bytes.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()
