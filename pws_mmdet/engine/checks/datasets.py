"""All checks of a dataset that is built, before the first step."""

from torch import nn
from torch.utils.data import Dataset

from .classes import check_classes, check_num_classes
from .images import check_images
from .objects import check_objects


def check_dataset(dataset: Dataset, model: nn.Module | None = None) -> None:
    """Check the classes, boxes, masks and images of a dataset of MMDetection.

    Whatever would stop a training, or silently ruin it, is an error. Whatever only
    looks wrong is a warning.

    Args:
        dataset: The dataset. Wrappers of MMDetection and MMEngine are looked into.
            Datasets of other packages are not checked.
        model: If given, the number of classes of its heads is checked, too.

    Raises:
        FileNotFoundError: If images that the pipeline reads are missing or empty.
        ValueError: If masks would stop the pipeline, or if classes or labels do not
            fit together.
    """
    check_classes(dataset)
    if model is not None:
        check_num_classes(dataset, model)
    check_objects(dataset)
    check_images(dataset)
