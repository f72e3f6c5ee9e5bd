"""Which classes are MMDetection's own, so that their behaviour is known.

A class of the user's may read other files, or number classes in another way. The
checks leave it alone.
"""

from collections.abc import Iterator
from typing import Any

from mmdet.datasets import BaseDetDataset
from torch.utils.data import Subset

# Packages whose datasets, transforms and metrics the checks know
HOSTS = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'pws_mmdet')
# Packages whose wrappers of datasets the checks look into
WRAPPERS = ('mmdet', 'mmengine', 'torch')


def is_of_host(part: Any) -> bool:
    """Tell whether a class or function is from ``HOSTS``, and not the user's own."""
    return part.__module__.partition('.')[0] in HOSTS


def base_datasets(dataset: Any) -> Iterator[BaseDetDataset]:
    """Yield the datasets of MMDetection inside wrappers such as RepeatDataset.

    The user's own wrappers are not looked into: they may leave out images. Nor is
    torch's Subset.
    """
    if isinstance(dataset, BaseDetDataset):
        yield dataset
        return
    package = type(dataset).__module__.partition('.')[0]
    if package not in WRAPPERS or isinstance(dataset, Subset):
        return
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from base_datasets(inner)
