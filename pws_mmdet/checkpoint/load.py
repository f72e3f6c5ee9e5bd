"""Load checkpoints from files, URLs and names, without running their code."""

import difflib
import json
import os
import os.path as osp
import pickle
import urllib.error
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from .unpickle import load_data, unsafe_names

# MMEngine's functions that list the names of a scheme
NAMES = {
    'openmmlab://': 'get_external_models',
    'open-mmlab://': 'get_external_models',
    'mmcls://': 'get_mmcls_models',
}


class DamagedCheckpointError(RuntimeError):
    """The file is not a whole checkpoint of torch."""


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


@contextmanager
def safe_loading() -> Iterator[None]:
    """Make MMEngine's CheckpointLoader refuse code in checkpoints, in this context.

    In this context, every file that MMEngine loads, also a downloaded one, may hold
    only tensors and MMEngine's own records. ``CheckpointLoader.load_checkpoint``
    then raises:

        ConnectionError: If a file cannot be downloaded.
        ValueError: If there are no weights of that name.
        Exception: For a file, as ``load_file``.
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
    ``safe_loading``.
    """
    register = CheckpointLoader.register_scheme
    register(prefixes='', loader=_load_from_local, force=True)
    register(
        prefixes=['modelzoo://', 'torchvision://'],
        loader=_load_from_torchvision,
        force=True,
    )


def _load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a file as MMEngine does, and with ``load_file`` if that fails.

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
