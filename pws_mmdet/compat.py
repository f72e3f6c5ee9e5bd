"""The few lines that the host libraries need.

Version guards, safe checkpoints, and MMDetection's programs run in place.
"""

import argparse
import codecs
import difflib
import json
import os
import os.path as osp
import pickle
import runpy
import sys
import time
import traceback
import types
import urllib.error
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from torch.utils import _pytree

from .version import MINIMUM_VERSIONS

INSTALL = (
    'pip install mmengine==0.10.7 && mim install mmcv==2.1.0 && '
    'pip install mmdet==3.3.0'
)
# torchvision goes with one torch; pip would take the latest of both.
INSTALL_PRETRAIN = (
    f"pip install -e '.[pretrain]' torch=={torch.__version__.split('+')[0]}"
)
# MMEngine's functions that list the names of a scheme
NAMES = {
    'openmmlab://': 'get_external_models',
    'open-mmlab://': 'get_external_models',
    'mmcls://': 'get_mmcls_models',
}
_torch_load = torch.load  # kept here, because safe_loading replaces it for a while
# Since 2.6 torch.load(weights_only=True) takes a list of (object, name) to allow.
HAS_ALLOW_LIST = Version(torch.__version__).release >= (2, 6)

# torch.compiler.is_compiling is new in 2.3; torch 2.1 and 2.2 have the private one.
if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:
    is_compiling = torch._utils.is_compiling


def tree_leaves(tree: Any) -> list[Any]:
    """Return what nested lists, tuples and dicts hold; new in torch 2.2."""
    return _pytree.tree_flatten(tree)[0]  # private; in torch 2.1 to 2.15


def unravel_index(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Turn flat indices into one of each axis; ``torch.unravel_index`` of 2.2."""
    axes = []
    for size in reversed(shape):
        axes.append(index % size)
        index = torch.div(index, size, rounding_mode='floor')
    return tuple(reversed(axes))


def saves_tensors_by_hooks() -> bool:
    """Tell whether hooks keep what the backward pass needs, as in checkpointing."""
    try:
        # This raises where there are hooks.
        with torch.autograd.graph.disable_saved_tensors_hooks('there are hooks'):
            return False
    except RuntimeError:
        return True


def check_versions() -> None:
    """Raise an ImportError that says what to install, if something is not right."""
    # The forks onedl-mmcv, onedl-mmengine and onedl-mmdetection import under the same
    # names: the imported modules count, not the distributions.
    for name, minimum in MINIMUM_VERSIONS.items():
        try:
            module = import_module(name)
        except ImportError as e:
            raise ImportError(
                f'pws_mmdet needs {name}>={minimum}, and importing it failed ({e}): '
                f'{INSTALL}'
            ) from e
        except AssertionError as e:  # how mmdet rejects an mmcv or mmengine
            raise ImportError(f'{e} For example: {INSTALL}') from e
        if Version(module.__version__) < Version(minimum):
            # A new torch needs MMCV again, because its operators are compiled for one.
            first = "pip install 'torch>=2.1' && " if name == 'torch' else ''
            raise ImportError(
                f'pws_mmdet needs {name}>={minimum}, but {module.__version__} is '
                f'installed: {first}{INSTALL}'
            )
    try:
        import_module('mmcv.ops')
    except ImportError as e:
        raise ImportError(
            f'The installed mmcv {import_module("mmcv").__version__} lacks the '
            f'compiled operators that detectors need ({e}). Replace it (mmcv-lite '
            'has none) by the full mmcv: pip uninstall mmcv mmcv-lite && mim install '
            'mmcv==2.1.0, or run tools/install.sh, which builds it.'
        ) from e


def _getattr_of_mmengine(owner: Any, name: str) -> Any:
    # Stands in for builtins.getattr: MMEngine pickles the statistics of a
    # HistoryBuffer as getattr(HistoryBuffer, 'mean'), OneCycleLR its curve, and
    # nothing else.
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    names = {
        HistoryBuffer: ('min', 'max', 'current', 'mean'),
        OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
    }
    if any(owner is cls and name in names[cls] for cls in names):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')


def _allowed_besides_tensors() -> dict[str, Any]:
    """What MMEngine's checkpoints hold, by the names in their pickles."""
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    numpy_core = np._core if Version(np.__version__).major >= 2 else np.core
    classes = [HistoryBuffer, OneCycleParamScheduler, ConfigDict]
    # What torch 2.6 and later take by themselves; MultiStepLR keeps a Counter.
    classes += [Counter, set, frozenset, bytearray, complex]
    classes += [torch.device, torch.Size, slice, np.ndarray, np.dtype]
    classes += {type(np.dtype(t)) for t in (*np.typecodes['AllInteger'], *'efdFD?US')}
    allowed = {f'{c.__module__}.{c.__qualname__}': c for c in classes}
    allowed['builtins.getattr'] = _getattr_of_mmengine
    for module in ('pathlib', 'pathlib._local'):  # the latter in Python 3.13
        allowed[f'{module}.PosixPath'] = allowed[f'{module}.WindowsPath'] = Path
    for core in ('numpy._core', 'numpy.core'):  # numpy 2, numpy 1
        for name in ('_reconstruct', 'scalar'):
            function = getattr(numpy_core.multiarray, name)
            allowed[f'{core}.multiarray.{name}'] = function
    return allowed


def load_more_checkpoints() -> None:
    """Let MMEngine load its own checkpoints, and torchvision's weights, everywhere.

    Since 2.6 ``torch.load`` takes only weights by default, and MMEngine's checkpoints
    hold its log history, too. ``torchvision://NAME`` needs no torchvision. What
    MMEngine can load by itself, it still does: to refuse is for :func:`safe_loading`.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    register = mmengine_checkpoint.CheckpointLoader.register_scheme
    register(prefixes='', loader=load_from_local, force=True)
    register(
        prefixes=['modelzoo://', 'torchvision://'],
        loader=load_from_torchvision,
        force=True,
    )


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """MMEngine's loader of files, which also takes MMEngine's own records.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If it holds anything else, or is damaged. The type is
            that of ``torch.load``: other people's code may catch it.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    if not osp.isfile(osp.expanduser(filename)):
        raise FileNotFoundError(f'There is no checkpoint {filename}.')
    try:
        return mmengine_checkpoint.load_from_local(filename, map_location)
    except pickle.UnpicklingError as e:
        try:
            return load_local_checkpoint(filename, map_location)
        except RuntimeError as reason:
            raise pickle.UnpicklingError(str(reason)) from e


@contextmanager
def safe_loading() -> Iterator[None]:
    """Let MMEngine's CheckpointLoader load data alone, in this context.

    A file that holds anything else than tensors and MMEngine's own records is refused,
    wherever it comes from, and what cannot be found is said clearly.

    Within it, ``CheckpointLoader.load_checkpoint`` raises:
        ConnectionError: If a file cannot be downloaded.
        ValueError: If there are no weights of that name.
        Others as :func:`load_local_checkpoint`.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    original = vars(loader)['load_checkpoint']
    load = loader.load_checkpoint

    def load_checkpoint(filename: str, *args: Any, **kwargs: Any) -> Any:
        # Replace torch.load: the loaders of all schemes end in it.
        torch_load, torch.load = torch.load, _load_data_alone
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

    loader.load_checkpoint = staticmethod(load_checkpoint)
    try:
        yield
    finally:
        loader.load_checkpoint = original


def load_checkpoint(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a checkpoint of data alone from a file, a URL or a name.

    Raises:
        OSError: If there is none, or it cannot be downloaded.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If there are no weights of that name.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    with safe_loading():
        return mmengine_checkpoint.CheckpointLoader.load_checkpoint(
            filename, map_location=map_location
        )


def _load_data_alone(f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """``torch.load`` in the context of :func:`safe_loading`."""
    if isinstance(f, (str, os.PathLike)):
        return load_local_checkpoint(str(f), map_location)
    return _load_data(f, map_location)


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is no whole file of torch's."""


class _Unpickler(pickle.Unpickler):
    """For a torch whose own allow-list takes no more: the same names, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals

        allowed = {**_get_allowed_globals(), **_allowed_besides_tensors()}
        allowed['_codecs.encode'] = codecs.encode  # protocol 2 stores bytes so
        key = f'{module}.{name}'.replace('__builtin__.', 'builtins.')  # Python 2's
        if key not in allowed:
            raise pickle.UnpicklingError(f'{key} is not allowed')
        return allowed[key]


@contextmanager
def _allow_mmengine_records() -> Iterator[None]:
    """Extend torch's allow-list, and restore it afterwards.

    The forks' MMEngine puts the whole of ``getattr`` on the list while it loads. A
    list of two functions of one name uses either, so that one has to go.
    """
    ours = _allowed_besides_tensors()
    theirs = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(
        [value for value in theirs if _pickled_name(value) not in ours]
        + [(value, name) for name, value in ours.items()]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(theirs)


def _pickled_name(allowed: Any) -> str:
    """The name of an entry of torch's allow-list."""
    if isinstance(allowed, tuple):
        return allowed[1]
    return f'{allowed.__module__}.{allowed.__qualname__}'


def _load_data(file: Any, map_location: Any) -> Any:
    if HAS_ALLOW_LIST:
        with _allow_mmengine_records():
            return _torch_load(file, map_location=map_location, weights_only=True)
    module = types.ModuleType('restricted_pickle')
    module.Unpickler = _Unpickler
    module.load = lambda f, **kwargs: _Unpickler(f, **kwargs).load()
    return _torch_load(
        file, map_location=map_location, pickle_module=module, weights_only=False
    )


def load_local_checkpoint(filename: str, map_location: Any = None) -> Any:
    """Load a checkpoint of tensors and MMEngine's own records.

    Args:
        filename: Path of the file.
        map_location: As of ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If the file cannot be read; perhaps it is truncated.
        RuntimeError: If it holds anything else.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'There is no checkpoint {filename}.')
    try:
        return _load_data(filename, map_location)
    except pickle.UnpicklingError as e:
        refusals = ('Unsupported', 'Can only', 'is not allowed')
        if not any(words in str(e) for words in refusals):
            raise DamagedCheckpointError(
                f'{filename} is not a readable checkpoint: it is no pickle, or damaged'
            ) from e
        raise RuntimeError(
            f'{filename} was not loaded: {_describe_unsafe(filename) or e}. '
            'Unpickling such things can run any code. If you trust the file, load it '
            'with torch.load(..., weights_only=False) and save its state_dict alone.'
        ) from None
    except Exception as e:  # a file that is no checkpoint may raise anything
        raise DamagedCheckpointError(
            f'{filename} is not a readable checkpoint; is it truncated? ({e})'
        ) from e


def _describe_unsafe(filename: str) -> str | None:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(filename)
    except Exception:  # an old format or torch: torch.load's own message has the name
        return None
    names = sorted(set(names) - set(_allowed_besides_tensors()))
    return f'it holds {", ".join(names)}' if names else None


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load what 'torchvision://NAME' stands for, without torchvision.

    MMEngine knows the plain names itself. It asks torchvision for all of them, which
    is needed for 'torchvision://NAME.WEIGHTS' alone.

    Raises:
        ConnectionError: If it cannot be downloaded.
        ValueError: If there is no such name.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

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


# Keep the object: torch forgets the operators when it is deleted.
_torchvision_operators: torch.library.Library | None = None


def allow_broken_torchvision() -> None:
    """Let MMDetection import a torchvision whose compiled part cannot be loaded.

    The wheels of the Python package index are compiled for a CUDA build of torch.
    Beside another build the rest of torchvision does not import either, only
    because it describes two operators of that part to torch, which does not know
    them. Once they are declared it does, and mmpretrain, which needs its
    transforms, works. To call the operators stays an error of torchvision's own.

    Nothing is imported unless mmpretrain is installed; where it is, MMDetection
    imports it. A torchvision that works is left alone.
    """
    global _torchvision_operators
    if not all(_is_installed(name) for name in ('mmpretrain', 'torchvision')):
        return
    try:
        import_module('torchvision')
        return
    except RuntimeError as e:
        if 'operator torchvision::' not in str(e):
            raise
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
        del sys.modules[name]  # half imported
    _torchvision_operators = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        _torchvision_operators.define(
            f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
        )
    import_module('torchvision')


def _is_installed(name: str) -> bool:
    # find_spec raises a ValueError for a module that tests have put in place
    return sys.modules.get(name) is not None or find_spec(name) is not None


def import_mmpretrain() -> None:
    """Import mmpretrain, which the classification configs are made of.

    Raises:
        ImportError: If it or what it needs is missing, with what to install.
    """
    allow_broken_torchvision()
    for name in ('torchvision', 'mmpretrain'):
        try:
            import_module(name)
        except ImportError as e:
            raise ImportError(
                'The classification configs need mmpretrain and torchvision, and '
                f'importing {name} failed ({e}): {INSTALL_PRETRAIN}'
            ) from e


def run_mmdet_tool(name: str) -> None:
    """Run one of the installed MMDetection's programs in this process.

    What is wrong before its loop over data begins, with the config, a checkpoint or
    the data, ends it with the exit status 2 and the error alone, without a traceback
    unless the environment has PWS_DEBUG.

    Args:
        name: Its path below MMDetection's ``tools/``, such as 'train.py'.

    Raises:
        FileNotFoundError: If the installation holds no such program.
        Exception: Whatever ends the loop.
    """
    import mmdet
    import mmengine.config
    import mmengine.runner

    from .engine import PWSRunner
    from .utils.config import ConfigOptions

    package = Path(mmdet.__file__).parent
    # The first path is that of a wheel of mmdet, the second that of a checkout.
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    program = next((path for path in candidates if path.is_file()), None)
    if program is None:
        raise FileNotFoundError(
            f'The mmdet in {package} came without its tools: there is no '
            f'{" nor ".join(map(str, candidates))}. Reinstall it: {INSTALL}'
        )
    mmengine.runner.Runner = PWSRunner
    mmengine.config.DictAction = ConfigOptions
    show_usage = argparse.ArgumentParser.error

    def stop_at_arguments(parser: argparse.ArgumentParser, message: str) -> None:
        _tell_launcher(f'{parser.prog}: error: {message}')
        show_usage(parser, message)

    try:
        argparse.ArgumentParser.error = stop_at_arguments
        runpy.run_path(str(program), run_name='__main__')
    except Exception as e:
        # In the form of a traceback's last lines: people search logs for that.
        text = ''.join(traceback.format_exception_only(e)).rstrip()
        if os.environ.get('PWS_DEBUG') or _has_begun(e):
            _tell_launcher(text)
            raise
        if config := _config_of(e):
            text = f'ValueError: {config} cannot be read: {text}'
        text = f'{name} stops; PWS_DEBUG=1 shows where:\n{text}'
        print(text, file=sys.stderr)
        _tell_launcher(text)
        sys.exit(2)
    finally:
        argparse.ArgumentParser.error = show_usage


def _tell_launcher(text: str) -> None:
    """Under torch.distributed.run, leave an error for tools/launch.py to show last."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        error = dict(message=text, timestamp=int(time.time()))
        Path(path).write_text(json.dumps(error))


def _has_begun(error: Exception) -> bool:
    """Whether an error is one of a loop over data that runs."""
    from mmengine.runner import BaseLoop

    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_code.co_name == 'run'
        and isinstance(frame.f_locals.get('self'), BaseLoop)
        for frame in frames
    )


def _config_of(error: Exception) -> str | None:
    """The config that could not be read."""
    from mmengine.config import Config

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is Config.fromfile.__code__:
            return str(frame.f_locals['filename'])
    return None
