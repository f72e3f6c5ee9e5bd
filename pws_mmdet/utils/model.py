"""Find the network inside its wrappers."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap_model(model: nn.Module, keep_tta: bool = False) -> nn.Module:
    """Return a network without its wrappers.

    Args:
        model: The network, perhaps in a wrapper for training (DDP) or for test-time
            augmentation (TTA).
        keep_tta: Remove only wrappers for training.
    """
    while is_model_wrapper(model) or (isinstance(model, BaseTTAModel) and not keep_tta):
        model = model.module
    return model
