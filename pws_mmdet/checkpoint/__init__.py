"""Checkpoints: read them without running their code, check them, write them whole."""

from .load import DamagedCheckpointError, register_loaders, safe_loading
from .read import Checkpoint, read_checkpoint
from .weights import check_finite, check_kind, load_strictly
from .write import publish_checkpoint, write_checkpoint

__all__ = [
    'Checkpoint',
    'DamagedCheckpointError',
    'check_finite',
    'check_kind',
    'load_strictly',
    'publish_checkpoint',
    'read_checkpoint',
    'register_loaders',
    'safe_loading',
    'write_checkpoint',
]
