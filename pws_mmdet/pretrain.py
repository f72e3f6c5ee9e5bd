"""What the classification configs import, as mmpretrain may need help to import.

    custom_imports = dict(imports=['pws_mmdet.pretrain'])

Raises:
    RuntimeError: If mmpretrain or what it needs is missing. Of an ImportError of a
        config's ``custom_imports``, MMEngine would show another text in the end.
"""

from .compat import import_mmpretrain

try:
    import_mmpretrain()
except ImportError as e:
    raise RuntimeError(str(e)) from e
