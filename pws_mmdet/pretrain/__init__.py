"""Import mmpretrain for the classification configs, and register ``AnyCIFAR10``.

    custom_imports = dict(imports=['pws_mmdet.pretrain'])

Importing this module also repairs a torchvision whose compiled part cannot be loaded.

Raises:
    RuntimeError: If mmpretrain or torchvision is missing. It is not an ImportError,
        because MMEngine replaces the text of those in ``custom_imports``.
"""

from ..compat import import_mmpretrain

try:
    import_mmpretrain()
    from .cifar10 import AnyCIFAR10
except ImportError as e:
    raise RuntimeError(str(e)) from e

__all__ = ['AnyCIFAR10']
