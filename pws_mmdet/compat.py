"""The versions of torch, mmcv, mmengine and mmdet that work, and their differences.

This module checks the versions and says what to install. It has what an older torch
lacks, and a list of the private names on which the package depends. It imports nothing
of the package except the version.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from packaging.version import Version
from torch.utils import _pytree

from .version import MINIMUM_VERSIONS

INSTALL = (
    'pip install mmengine==0.10.7 && mim install mmcv==2.1.0 && '
    'pip install mmdet==3.3.0'
)
# Each torchvision needs one version of torch. Without it, pip would upgrade torch.
INSTALL_PRETRAIN = (
    f"pip install -e '.[pretrain]' torch=={torch.__version__.split('+')[0]}"
)
# torch 2.6 and later let us add (object, name) to what torch.load(weights_only=True)
# allows.
HAS_ALLOW_LIST = Version(torch.__version__).release >= (2, 6)

# Private names of the host libraries that the package uses or overrides, by the library
# and the version in which they were last seen. A new version may change any of them.
PRIVATE_NAMES = {
    'torch 2.13': (
        *('_BatchNorm', '_C', '_ConvNd', '_NormBase'),
        *('_backward_hooks', '_backward_pre_hooks', '_buffers', '_conv_forward'),
        *('_cuda_getCurrentRawStream', '_cuda_getDevice', '_current_graph_task_id'),
        *('_current_level', '_foreach_norm', '_forward_hooks'),
        *('_forward_pre_hooks', '_functorch', '_get_allowed_globals'),
        *('_get_tracing_state', '_iterator', '_len_torch_dispatch_stack'),
        *('_load_from_state_dict', '_modules', '_parameters', '_python_dispatch'),
        *('_pytree', '_register_load_state_dict_pre_hook'),
        *('_tensor_name', '_torchdynamo_orig_callable', '_utils', '_version'),
        *('_are_functorch_transforms_active', '_weights_only_unpickler'),
    ),
    'mmengine 0.10.7': (
        *('_annealing_cos', '_annealing_linear', '_channel_conversion'),
        *('_enable_normalize', '_get_init_info', '_has_loaded', '_load_from'),
        *('_randomness_cfg', '_resume', '_run_forward', '_save_best_checkpoint'),
        *('_save_checkpoint_with_step', '_test_loop', '_train_dataloader'),
        *('_train_loop', '_val_loop', '_vis_backends'),
    ),
    'mmcv 2.1.0': ('_get_weight',),
    'mmdet 3.3.0': ('_load_masks', '_process_masks'),
}

# torch 2.3 and later have torch.compiler.is_compiling.
if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:
    is_compiling = torch._utils.is_compiling


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts.

    ``torch.utils._pytree.tree_leaves`` exists in torch 2.2 and later.
    """
    return _pytree.tree_flatten(tree)[0]


def get_allowed_globals() -> dict[str, Any]:
    """Return what torch before 2.6 allows a pickle of tensors to name, by name."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return _get_allowed_globals()


def saves_tensors_by_hooks() -> bool:
    """Tell whether saved-tensor hooks are active, as in activation checkpointing."""
    try:
        # It raises a RuntimeError if hooks are active.
        with torch.autograd.graph.disable_saved_tensors_hooks('there are hooks'):
            return False
    except RuntimeError:
        return True


def check_versions() -> None:
    """Check the versions of the host libraries, and that mmcv has its operators.

    Raises:
        ImportError: If a library is missing or too old. It says what to install.
    """
    # Look at modules, not at distributions: the forks onedl-mmcv, onedl-mmengine and
    # onedl-mmdetection have other names as distributions, but the same modules.
    for name, minimum in MINIMUM_VERSIONS.items():
        try:
            module = import_module(name)
        except ImportError as e:
            raise ImportError(
                f'pws_mmdet needs {name}>={minimum}, and importing it failed ({e}): '
                f'{INSTALL}'
            ) from e
        except AssertionError as e:  # mmdet rejects its mmcv or mmengine
            raise ImportError(f'{e} For example: {INSTALL}') from e
        if Version(module.__version__) < Version(minimum):
            # A new torch needs a new MMCV, which is compiled for one torch.
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


# torch forgets the operators when this object is deleted.
_torchvision_operators: torch.library.Library | None = None


def allow_broken_torchvision() -> None:
    """Let MMDetection import a torchvision whose compiled part cannot be loaded.

    torchvision's wheels for CUDA do not load their compiled part beside a CPU build of
    torch. Importing torchvision then fails, because it registers two operators that
    only the compiled part declares. This function declares the two, so that the rest
    of torchvision, which mmpretrain needs, can be imported. Calling the two operators
    still raises an error.

    Without mmpretrain nothing happens: only mmpretrain makes MMDetection import
    torchvision. A torchvision that works is not changed.
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
        del sys.modules[name]  # only half of it was imported
    _torchvision_operators = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        _torchvision_operators.define(
            f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
        )
    import_module('torchvision')


def _is_installed(name: str) -> bool:
    # find_spec raises a ValueError for a module without a spec, as tests make them.
    return sys.modules.get(name) is not None or find_spec(name) is not None


def import_mmpretrain() -> None:
    """Import mmpretrain, which the classification configs need.

    Raises:
        ImportError: If it or torchvision is missing. It says what to install.
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
