"""Read the weights and the classes of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .load import load_content


class Checkpoint(NamedTuple):
    """The parts of a checkpoint that the package uses."""

    weights: dict[str, Tensor]  # by name
    dataset_meta: Any = None  # MMDetection's, with the names of the classes


def read_checkpoint(
    source: str | Path, prefix: str | None = None, map_location: Any = 'cpu'
) -> Checkpoint:
    """Read the weights of a checkpoint without running code that it holds.

    Args:
        source: Path of a file, a URL, or a name such as 'torchvision://resnet50'.
        prefix: Take only the weights below this name, such as 'backbone.', and remove
            it from their names.
        map_location: Where to load them, as of ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        ConnectionError: If it cannot be downloaded.
        RuntimeError: If it is damaged, or holds more than tensors and MMEngine's own
            records.
        ValueError: If ``source`` is an unknown name, or there are no weights, or none
            below ``prefix``.
    """
    content = load_content(str(source), map_location)
    try:
        weights = weights_of(content, prefix)
    except ValueError as e:
        raise ValueError(f'{source}: {e}') from None
    return Checkpoint(weights, meta_of(content).get('dataset_meta'))


def weights_of(content: Any, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the weights in the content of a checkpoint.

    Args:
        content: A ``state_dict``, or a dict with one under 'state_dict' or 'model'.
        prefix: Take only the weights below this name, and remove it from their names.

    Returns:
        The tensors by name, without the prefix 'module.' of DDP.

    Raises:
        ValueError: If there are no weights, or none below ``prefix``.
    """
    weights = content
    for key in ('state_dict', 'model'):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
            break
    weights = {
        key.removeprefix('module.'): value
        for key, value in (weights if isinstance(weights, Mapping) else {}).items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not weights:
        raise ValueError('it holds no weights')
    if not prefix:
        return weights
    prefix = prefix.rstrip('.') + '.'
    chosen = {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix)
    }
    if not chosen:
        found = sorted({f'{key.split(".")[0]}.*' for key in weights})
        raise ValueError(
            f'none of its weights is named {prefix}*, but {", ".join(found[:5])}'
        )
    return chosen


def meta_of(content: Any) -> Mapping:
    """Return the ``meta`` in the content of a checkpoint, or an empty mapping."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def classes_of(content: Any) -> tuple[str, ...]:
    """Return the names of the classes that a checkpoint was trained on.

    MMDetection 2 wrote them as ``CLASSES`` into ``meta``, MMDetection 3 writes them
    into its ``dataset_meta``.

    Returns:
        The names; none if the checkpoint does not say.
    """
    meta = meta_of(content)
    inner = meta.get('dataset_meta')
    for known in (inner if isinstance(inner, Mapping) else {}, meta):
        names = known.get('classes', known.get('CLASSES'))
        if isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names):
            return tuple(names)
    return ()
