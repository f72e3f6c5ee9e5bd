"""Checkpoints: read them without running their code, check them, write them whole."""

from .read import (
    Checkpoint,
    DamagedCheckpointError,
    read_checkpoint,
    register_loaders,
    safe_loading,
)
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
