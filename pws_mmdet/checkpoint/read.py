"""Read checkpoints from a file, a URL or a name, without running their code."""

import difflib
import json
import os
import os.path as osp
import pickle
import urllib.error
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from .unpickle import load_data, unsafe_names

# MMEngine's functions that list the names of a scheme
NAMES = {
    'openmmlab://': 'get_external_models',
    'open-mmlab://': 'get_external_models',
    'mmcls://': 'get_mmcls_models',
}


class DamagedCheckpointError(RuntimeError):
    """The file is not a whole checkpoint of torch."""


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


def load_content(source: str, map_location: Any = 'cpu') -> Any:
    """Load all that a checkpoint holds, without running code that it holds.

    Args:
        source: Path of a file, a URL, or a name such as 'torchvision://resnet50'.
        map_location: As of ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        ConnectionError: If it cannot be downloaded.
        RuntimeError: If it is damaged, or holds more than tensors and MMEngine's own
            records.
        ValueError: If ``source`` is an unknown name.
    """
    if '://' not in source:
        return load_file(source, map_location)
    with safe_loading():
        return CheckpointLoader.load_checkpoint(source, map_location=map_location)


def load_file(filename: str, map_location: Any = None) -> Any:
    """Load all that the file of a checkpoint holds, without running code that it holds.

    Args:
        filename: Path of the file.
        map_location: As of ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If the file cannot be read. It may be truncated.
        RuntimeError: If it holds more than tensors and MMEngine's own records.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'There is no checkpoint {filename}.')
    try:
        return load_data(filename, map_location)
    except pickle.UnpicklingError as e:
        refusals = ('Unsupported', 'Can only', 'is not allowed')
        if not any(words in str(e) for words in refusals):
            raise DamagedCheckpointError(
                f'{filename} is not a readable checkpoint: it is no pickle, or damaged'
            ) from e
        names = unsafe_names(filename)
        reason = f'it holds {", ".join(names)}' if names else e
        raise RuntimeError(
            f'{filename} was not loaded: {reason}. Unpickling such things can run any '
            'code. If you trust the file, load it with '
            'torch.load(..., weights_only=False) and save its state_dict alone.'
        ) from None
    except Exception as e:  # a damaged file may raise anything
        raise DamagedCheckpointError(
            f'{filename} is not a readable checkpoint; is it truncated? ({e})'
        ) from e


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


@contextmanager
def safe_loading() -> Iterator[None]:
    """Make MMEngine's CheckpointLoader refuse code in checkpoints, in this context.

    In this context, every file that MMEngine loads, also a downloaded one, may hold
    only tensors and MMEngine's own records. ``CheckpointLoader.load_checkpoint``
    then raises:

        ConnectionError: If a file cannot be downloaded.
        ValueError: If there are no weights of that name.
        Exception: For a file, as :func:`load_file`.
    """
    original = vars(CheckpointLoader)['load_checkpoint']
    load = CheckpointLoader.load_checkpoint

    def load_checkpoint(filename: str, *args: Any, **kwargs: Any) -> Any:
        # Replace torch.load, because the loaders of all schemes call it in the end.
        torch_load, torch.load = torch.load, _load_in_place_of_torch
        try:
            return load(filename, *args, **kwargs)
        except urllib.error.URLError as e:
            raise ConnectionError(
                f'{filename} could not be downloaded ({e.reason}). Fetch it where '
                'there is a network connection and name its path instead, for example '
                '--cfg-options model.backbone.init_cfg.checkpoint=PATH'
            ) from e
        except KeyError:
            scheme = filename.partition('://')[0] + '://'
            if scheme not in NAMES:
                raise
            names = getattr(mmengine_checkpoint, NAMES[scheme])()
            raise ValueError(_describe_unknown(filename, names)) from None
        finally:
            torch.load = torch_load

    CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)
    try:
        yield
    finally:
        CheckpointLoader.load_checkpoint = original


def _load_in_place_of_torch(
    f: Any, map_location: Any = None, *_: Any, **__: Any
) -> Any:
    if isinstance(f, (str, os.PathLike)):
        return load_file(str(f), map_location)
    return load_data(f, map_location)


def register_loaders() -> None:
    """Let MMEngine load its own checkpoints, and torchvision's weights, everywhere.

    MMEngine's checkpoints hold its log history, which ``torch.load`` refuses by default
    in torch 2.6 and later. MMEngine imports torchvision for every
    ``torchvision://NAME``, although it has the URLs of most names itself.

    These loaders refuse nothing that MMEngine's own loaders accept. That is the job of
    :func:`safe_loading`.
    """
    register = CheckpointLoader.register_scheme
    register(prefixes='', loader=_load_from_local, force=True)
    register(
        prefixes=['modelzoo://', 'torchvision://'],
        loader=_load_from_torchvision,
        force=True,
    )


def _load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a file as MMEngine does, and with :func:`load_file` if that fails.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If both refuse the file. Other code may expect this
            type, because ``torch.load`` raises it.
    """
    if not osp.isfile(osp.expanduser(filename)):
        raise FileNotFoundError(f'There is no checkpoint {filename}.')
    try:
        return mmengine_checkpoint.load_from_local(filename, map_location)
    except pickle.UnpicklingError as e:
        try:
            return load_file(filename, map_location)
        except RuntimeError as reason:
            raise pickle.UnpicklingError(str(reason)) from e


def _load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load 'torchvision://NAME'. Only names of the form NAME.WEIGHTS need torchvision.

    Raises:
        ConnectionError: If it cannot be downloaded.
        ValueError: If there is no such name.
    """
    name = filename.split('://', 1)[1]
    path = Path(mmengine_checkpoint.__file__).parents[1] / 'hub/torchvision_0.12.json'
    urls, hint = json.loads(path.read_text()), ''
    if name not in urls:
        try:
            urls = mmengine_checkpoint.get_torchvision_models()
        except (ImportError, RuntimeError) as e:
            hint = f' NAME.WEIGHTS needs torchvision, and importing it failed ({e}).'
    if name not in urls:
        raise ValueError(_describe_unknown(filename, urls) + hint)
    return mmengine_checkpoint.load_from_http(urls[name], map_location=map_location)


def _describe_unknown(filename: str, names: Iterable[str]) -> str:
    scheme, name = filename.split('://', 1)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f' Did you mean {", ".join(close)}?' if close else ''
    return f'{scheme}:// has no weights named {name!r}.{meant}'
