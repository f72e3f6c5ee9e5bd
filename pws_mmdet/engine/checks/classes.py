"""Checks that labels, classes and heads fit together, before the first step."""

from collections.abc import Iterator, Sequence

from mmdet.datasets import BaseDetDataset
from mmdet.models.dense_heads import GARPNHead, RPNHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from torch import nn
from torch.utils.data import Dataset

from ...utils.log import warn
from ...utils.names import first_names
from .hosts import base_datasets

# Modules of MMDetection's heads
HEADS = ('mmdet.models.dense_heads.', 'mmdet.models.roi_heads.')
# Heads whose num_classes is not the number of the dataset's classes
OTHER_HEADS = (RPNHead, GARPNHead, FusedSemanticHead)


def check_classes(dataset: Dataset) -> None:
    """Check that each label of a dataset means the class that metainfo names.

    MMDetection numbers the classes of a COCO file in the order of its categories, and
    leaves out classes that the file does not have. The names in ``metainfo`` have
    their own order.

    Raises:
        ValueError: If a label would mean another class than its name says.
    """
    for base in base_datasets(dataset):
        classes = _classes_of(base)
        if isinstance(classes, str):
            raise ValueError(
                f'{base.ann_file}: classes must be a tuple of names, not the text '
                f"{classes!r}: metainfo=dict(classes=('{classes}',)), with a comma"
            )
        names = getattr(base, 'file_classes', None)
        if names is None:
            continue
        if fault := fault_of_order(names, classes):
            raise ValueError(f'{base.ann_file} {fault}')
        if len(names) < len(classes):
            warn(
                f'{base.ann_file} has no categories for the last classes, '
                f'{first_names(classes[len(names) :])}: they have no objects.'
            )


def fault_of_order(names: Sequence[str], classes: Sequence[str]) -> str:
    """Compare the names of a file's categories with the classes of a dataset.

    Args:
        names: The categories that are classes, in the order of the file.
        classes: The classes in metainfo.

    Returns:
        The end of a sentence about the file, or an empty string if each name is at
        the place of its class. The last classes may be missing in the file.
    """
    if names and tuple(names) == tuple(classes[: len(names)]):
        return ''
    if len(set(names)) < len(names):
        return (
            f'has categories of the same name, {first_names(sorted(names))}: '
            'MMDetection makes each of them a class. Give each its own name, or give '
            'all their annotations the same category'
        )
    if len(names) != len(classes):
        return (
            f'has categories for {len(names)} of the {len(classes)} classes of the '
            f'dataset, {first_names(classes)}: put the names of its categories into '
            "metainfo, as in metainfo=dict(classes=('cat', 'dog'))"
        )
    return (
        f'has its categories in another order, {first_names(names)}, than metainfo has '
        f'the classes, {first_names(classes)}. MMDetection numbers classes in the '
        'order of the file, so an object would get the name of another class. Put the '
        "names in metainfo into the order of the file's categories, in training and "
        "validation alike. If the files differ, put their 'categories' into the same "
        'order'
    )


def check_num_classes(
    dataset: Dataset, model: nn.Module, refused: Sequence[str] = ('few', 'many')
) -> None:
    """Check that the heads of a model have as many classes as a dataset.

    MMDetection's ``NumClassCheckHook`` does the same for all modules. This check looks
    at heads alone: the ``num_classes`` of a backbone is of another task. An RPN has no
    classes, and a semantic head has those of stuff. Datasets whose classes are prompts
    (``return_classes=True``) are not checked.

    Args:
        dataset: As of ``check_classes``.
        model: The detector.
        refused: What is an error: too 'few' classes in a head, too 'many', or both.
            The other one is a warning, because such a detector can be tested.

    Raises:
        ValueError: If a head has too few or too many classes, and that is refused.
    """
    for base in base_datasets(dataset):
        classes = _classes_of(base)
        if base.return_classes or not classes:
            continue
        # A panoptic dataset also has classes of stuff. Box heads have those of things.
        things = base.metainfo.get('thing_classes') or classes
        for name, number in _class_counts(model):
            if number in (len(classes), len(things)):
                continue
            kind, result = 'few', 'objects of the last classes are background to it'
            if number > len(classes):
                kind, result = 'many', 'detections of the last ones have no class'
            text = (
                f'{base.ann_file}: the dataset has {len(classes)} classes '
                f'({first_names(classes)}), and num_classes={number} of model.{name} '
                f'is too {kind}: {result}. Set num_classes={len(things)} there, or '
                'change the classes in metainfo'
            )
            if kind in refused:
                raise ValueError(text)
            warn(text)


def _class_counts(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the names of heads, and the number of classes that each one has."""
    for name, head in model.named_modules():
        number = getattr(head, 'num_classes', None)
        if not isinstance(number, int) or 'rpn_head' in name:
            continue
        kinds = (f'{kind.__module__}.' for kind in type(head).__mro__)
        is_head = any(kind.startswith(HEADS) for kind in kinds)
        if is_head and not isinstance(head, OTHER_HEADS):
            yield name.removeprefix('module.'), number


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Check that a label means the same class in training and validation.

    A name that only one dataset has is a warning: the other dataset may have another
    name for the same class.

    Raises:
        ValueError: If a class has another label in the validation. Its results would
            be wrong.
    """
    sets = [[*base_datasets(dataset)] for dataset in (train, val)]
    if any(base.return_classes for bases in sets for base in bases):
        return  # The classes are prompts.
    for first in sets[0][:1]:
        for second in sets[1]:
            ours, theirs = _classes_of(first), _classes_of(second)
            pairs = enumerate(zip(ours, theirs, strict=False))
            other = [(i, a, b) for i, (a, b) in pairs if a != b]
            if not other:
                continue
            label, in_training, in_validation = other[0]
            text = (
                f'The label {label} is {in_training!r} in the training and '
                f'{in_validation!r} in the validation ({second.ann_file})'
            )
            if any(a in theirs or b in ours for _, a, b in other):
                raise ValueError(
                    f'{text}. Give the classes in metainfo the same order for both, '
                    "and give the 'categories' of both files that order, too"
                )
            warn(f'{text}. If these are different classes, the results are wrong.')


def check_trained_classes(dataset: Dataset, trained: Sequence[str]) -> None:
    """Check that the labels of a dataset mean what they mean to a trained network.

    A network may be tested on a dataset with other classes. If only some of its
    classes have another label there, this is a warning.

    Args:
        dataset: As of ``check_classes``.
        trained: The names of the classes, in the order of the network's labels.

    Raises:
        ValueError: If the dataset has the same classes in another order.
    """
    for base in base_datasets(dataset):
        classes = _classes_of(base)
        labels = {name: label for label, name in enumerate(trained)}
        moved = [c for i, c in enumerate(classes) if labels.get(c, i) != i]
        if not moved or base.return_classes:
            continue
        text = (
            f'it was trained with other labels for {first_names(moved)}: {moved[0]!r} '
            f'has the label {labels[moved[0]]} in it, and {classes.index(moved[0])} in '
            f'{base.ann_file}. Correct detections would count as wrong ones'
        )
        if set(classes) == set(trained):
            raise ValueError(
                f'{text}. Put the classes in metainfo, and the categories of the file, '
                'into the order of the checkpoint'
            )
        warn(f'The checkpoint: {text}.')


def _classes_of(base: BaseDetDataset) -> Sequence[str]:
    return base.metainfo.get('classes') or ()
