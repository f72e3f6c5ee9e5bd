"""What differs between versions of torch, mmcv, mmengine and mmdet.

Which versions go together and what to install, what an older torch lacks, and every
private name of these libraries that the package uses.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
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


def get_allowed_globals() -> dict[str, Any]:
    """Return torch's list of the names that a pickle of tensors may hold."""
    # Private; in torch 2.1 to 2.15. Only a torch before 2.6 needs it.
    from torch._weights_only_unpickler import _get_allowed_globals

    return _get_allowed_globals()


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
