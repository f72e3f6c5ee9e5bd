"""The few lines that the host libraries need.

Version guards, safe checkpoints, and MMDetection's programs run in place.
"""

import codecs
import difflib
import functools
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
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
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
# torch.load(weights_only=True) takes what is allow-listed by name
HAS_ALLOW_LIST = Version(torch.__version__).release >= (2, 6)

# torch.compiler.is_compiling is new in 2.3. torch.compile knows both functions.
is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)


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
            # mmcv's operators are compiled for one torch
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


def _getattr_of_history_buffer(owner: Any, name: str) -> Any:
    # Stands in for builtins.getattr: MMEngine pickles the statistics of a
    # HistoryBuffer as getattr(HistoryBuffer, 'mean'), and nothing else.
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')


def _allowed_besides_tensors() -> dict[str, Any]:
    """What MMEngine's checkpoints hold, by the names in their pickles."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    numpy_core = np._core if Version(np.__version__).major >= 2 else np.core
    classes = [HistoryBuffer, slice, np.ndarray, np.dtype]
    classes += {type(np.dtype(t)) for t in (*np.typecodes['AllInteger'], *'efd?')}
    allowed = {f'{c.__module__}.{c.__qualname__}': c for c in classes}
    allowed['builtins.getattr'] = _getattr_of_history_buffer
    for core in ('numpy._core', 'numpy.core'):  # numpy 2, numpy 1
        for name in ('_reconstruct', 'scalar'):
            function = getattr(numpy_core.multiarray, name)
            allowed[f'{core}.multiarray.{name}'] = function
    return allowed


def allow_mmengine_checkpoints() -> None:
    """Let MMEngine load its own checkpoints, and no other pickle.

    ``torch.load`` takes only weights by default since 2.6, and MMEngine's
    checkpoints hold its log history besides. What these hold is allow-listed;
    a file that holds anything else is refused with a message that names it. Weights
    that are loaded must be of the kind of the network, too: see
    :func:`pws_mmdet.convert.checkpoint.check_kind`.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals(
            [(value, name) for name, value in _allowed_besides_tensors().items()]
        )
    register = mmengine_checkpoint.CheckpointLoader.register_scheme
    register(prefixes='', loader=load_local_checkpoint, force=True)
    register(
        prefixes=['modelzoo://', 'torchvision://'],
        loader=load_from_torchvision,
        force=True,
    )
    for names, list_names in (
        (('openmmlab://', 'open-mmlab://'), mmengine_checkpoint.get_external_models),
        (('mmcls://',), mmengine_checkpoint.get_mmcls_models),
    ):
        loader = mmengine_checkpoint.CheckpointLoader._schemes[names[0]]
        register(prefixes=names, loader=_named(loader, list_names), force=True)
    mmengine_checkpoint.load_url = load_url
    load = mmengine_checkpoint.load_state_dict
    mmengine_checkpoint.load_state_dict = _of_the_right_kind(load)


def _of_the_right_kind(load: Callable) -> Callable:
    if hasattr(load, '__wrapped__'):  # it is already
        return load

    @functools.wraps(load)
    def load_state_dict(module: Any, state_dict: Any, *args, **kwargs) -> None:
        from .convert.checkpoint import check_kind

        check_kind(module, state_dict, as_start=True)
        load(module, state_dict, *args, **kwargs)

    return load_state_dict


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is no whole file of torch's."""


class _Unpickler(pickle.Unpickler):
    """For a torch whose own allow-list takes no more: the same names, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals

        allowed = {**_get_allowed_globals(), **_allowed_besides_tensors()}
        allowed['_codecs.encode'] = codecs.encode  # how protocol 2 has bytes
        key = f'{module}.{name}'.replace('__builtin__.', 'builtins.')  # Python 2's
        if key not in allowed:
            raise pickle.UnpicklingError(f'{key} is not allowed')
        return allowed[key]


def _load_data(file: str, map_location: Any) -> Any:
    if HAS_ALLOW_LIST:
        return torch.load(file, map_location=map_location, weights_only=True)
    module = types.ModuleType('restricted_pickle')
    module.Unpickler = _Unpickler
    module.load = lambda f, **kwargs: _Unpickler(f, **kwargs).load()
    return torch.load(
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
        if not any(word in str(e) for word in ('Unsupported', 'is not allowed')):
            raise DamagedCheckpointError(
                f'{filename} is not a readable checkpoint: it is no pickle, or damaged'
            ) from e
        raise RuntimeError(
            f'{filename} was not loaded: {_describe_unsafe(filename) or e}. '
            'Unpickling such things can run any code. If you trust the file, load it '
            'with torch.load(..., weights_only=False) and save its state_dict alone.'
        ) from None
    except Exception as e:  # what is no checkpoint fails in any way
        raise DamagedCheckpointError(
            f'{filename} is not a readable checkpoint; is it truncated? ({e})'
        ) from e


def _describe_unsafe(filename: str) -> str | None:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(filename)
    except Exception:  # an old format or torch: torch.load's own message has the name
        return None
    return f'it holds {", ".join(sorted(names))}' if names else None


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
) -> Any:
    """``torch.hub.load_state_dict_from_url`` for weights only.

    Raises:
        ConnectionError: If the file cannot be downloaded.
        RuntimeError: As of :func:`load_local_checkpoint`.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    path = folder / (file_name or Path(urllib.parse.urlparse(url).path).name)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = torch.hub.HASH_REGEX.search(path.name) if check_hash else None
        prefix = found and found.group(1)
        try:
            torch.hub.download_url_to_file(url, str(path), prefix, progress)
        except urllib.error.URLError as e:
            raise ConnectionError(
                f'{url} could not be downloaded ({e.reason}). Fetch it where there is '
                'a network connection and name its path instead, for example '
                '--cfg-options model.backbone.init_cfg.checkpoint=PATH'
            ) from e
    return load_local_checkpoint(str(path), map_location)


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


def _named(loader: Callable, list_names: Callable[[], Iterable[str]]) -> Callable:
    """A loader of MMEngine's that says so where there is no such name."""

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> Any:
        try:
            return loader(filename, map_location)
        except KeyError:
            raise ValueError(_describe_unknown(filename, list_names())) from None

    return load


def _describe_unknown(filename: str, names: Iterable[str]) -> str:
    scheme, name = filename.split('://', 1)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f' Did you mean {", ".join(close)}?' if close else ''
    return f'{scheme}:// has no weights named {name!r}.{meant}'


# torch forgets the operators that are declared here with this object.
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

    from .config import ConfigOptions
    from .engine import PWSRunner

    package = Path(mmdet.__file__).parent
    # a wheel of mmdet, a checkout of it
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    program = next((path for path in candidates if path.is_file()), None)
    if program is None:
        raise FileNotFoundError(
            f'The mmdet in {package} came without its tools: there is no '
            f'{" nor ".join(map(str, candidates))}. Reinstall it: {INSTALL}'
        )
    mmengine.runner.Runner = PWSRunner
    mmengine.config.DictAction = ConfigOptions
    try:
        runpy.run_path(str(program), run_name='__main__')
    except Exception as e:
        if os.environ.get('PWS_DEBUG') or _has_begun(e):
            raise
        # as the last lines of a traceback, which is what logs are searched for
        text = ''.join(traceback.format_exception_only(e)).rstrip()
        if config := _config_of(e):
            text = f'ValueError: {config} cannot be read: {text}'
        text = f'{name} stops; PWS_DEBUG=1 shows where:\n{text}'
        print(text, file=sys.stderr)
        # Under torch.distributed.run: where tools/launch.py finds it to show it last.
        if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
            error = dict(message=text, timestamp=int(time.time()))
            Path(path).write_text(json.dumps(error))
        sys.exit(2)


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
