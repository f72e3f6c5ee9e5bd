"""Unpickle tensors and MMEngine's own records, and refuse everything else.

A pickle can name any function, and unpickling calls it. So every name in a pickle must
be on a list of harmless names. torch has such a list for tensors. This module adds the
names that MMEngine's checkpoints need.
"""

import codecs
import pickle
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from packaging.version import Version

from .. import compat

# Keep the original: safe_loading replaces torch.load.
_torch_load = torch.load

# Attributes that MMEngine pickles as getattr(CLASS, NAME): the statistics of its log
# history, and the curve of OneCycleLR.
ATTRIBUTES = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def load_data(file: Any, map_location: Any = None) -> Any:
    """Load a file of tensors and MMEngine's own records with ``torch.load``.

    Args:
        file: Path or file object.
        map_location: As of ``torch.load``.

    Raises:
        pickle.UnpicklingError: If the pickle names anything else.
        Exception: If the file is damaged, any error of ``torch.load``.
    """
    if compat.HAS_ALLOW_LIST:
        with _extended_allow_list():
            return _torch_load(file, map_location=map_location, weights_only=True)
    module = types.SimpleNamespace(
        __name__='restricted_pickle',
        Unpickler=_Unpickler,
        load=lambda f, **kwargs: _Unpickler(f, **kwargs).load(),
    )
    return _torch_load(
        file, map_location=map_location, pickle_module=module, weights_only=False
    )


def unsafe_names(filename: str) -> list[str]:
    """List the names in a pickle that ``load_data`` refuses.

    Returns:
        The names; none where this torch cannot tell, or the file has an old format.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(filename)
    except Exception:
        return []
    return sorted(set(names) - set(_allowed_besides_tensors()))


def _getattr_of_mmengine(owner: Any, name: str) -> Any:
    """Replace ``builtins.getattr`` in a pickle: only ``ATTRIBUTES`` are allowed."""
    if any(owner is cls and name in names for cls, names in ATTRIBUTES.items()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')


def _allowed_besides_tensors() -> dict[str, Any]:
    """Return the objects that MMEngine's checkpoints name, by these names."""
    core = 'numpy._core' if Version(np.__version__).major >= 2 else 'numpy.core'
    multiarray = import_module(f'{core}.multiarray')
    classes = [HistoryBuffer, OneCycleParamScheduler, ConfigDict]
    # torch 2.6 and later allow these by themselves. MultiStepLR keeps a Counter.
    classes += [Counter, set, frozenset, bytearray, complex]
    classes += [torch.device, torch.Size, slice, np.ndarray, np.dtype]
    classes += {type(np.dtype(t)) for t in (*np.typecodes['AllInteger'], *'efdFD?US')}
    allowed = {f'{c.__module__}.{c.__qualname__}': c for c in classes}
    allowed['builtins.getattr'] = _getattr_of_mmengine
    for module in ('pathlib', 'pathlib._local'):  # Python 3.13 has the second
        allowed[f'{module}.PosixPath'] = allowed[f'{module}.WindowsPath'] = Path
    for core in ('numpy._core', 'numpy.core'):  # numpy 2, numpy 1
        for name in ('_reconstruct', 'scalar'):
            allowed[f'{core}.multiarray.{name}'] = getattr(multiarray, name)
    return allowed


class _Unpickler(pickle.Unpickler):
    """Allow the same names in torch before 2.6, which has no list to extend."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {**compat.get_allowed_globals(), **_allowed_besides_tensors()}
        allowed['_codecs.encode'] = codecs.encode  # protocol 2 stores bytes with it
        key = f'{module}.{name}'.replace('__builtin__.', 'builtins.')  # Python 2
        if key not in allowed:
            raise pickle.UnpicklingError(f'{key} is not allowed')
        return allowed[key]


@contextmanager
def _extended_allow_list() -> Iterator[None]:
    """Add our names to torch's allow-list, and restore the list afterwards.

    Entries of other packages are left out if they have one of our names, because torch
    may use either of the two. For example, the forks' MMEngine adds the real
    ``getattr`` while it loads a file.
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
    """Return the name of an entry of torch's allow-list."""
    if isinstance(allowed, tuple):
        return allowed[1]
    return f'{allowed.__module__}.{allowed.__qualname__}'
