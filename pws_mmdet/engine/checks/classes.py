"""Checks that labels, classes and heads fit together, before the first step."""

from collections.abc import Sequence

from mmdet.models.dense_heads import GARPNHead, RPNHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from torch import nn
from torch.utils.data import Dataset

from ...utils.names import first_names
from .annotations import warn
from .suspicious_data import base_datasets

HEADS = ('mmdet.models.dense_heads.', 'mmdet.models.roi_heads.')


def check_classes(dataset: Dataset) -> None:
    """Check that the labels of a dataset mean the classes that it names.

    MMDetection numbers the classes of a COCO file in the order of its categories and
    leaves out those that are not there. The names in ``metainfo`` have their own order.

    Raises:
        ValueError: If a label would mean another class than its name says.
    """
    for base in base_datasets(dataset):
        classes = base.metainfo.get('classes') or ()
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
                f'{base.ann_file} has no categories for the last of the classes, '
                f'{first_names(classes[len(names) :])}: they have no objects.'
            )


def fault_of_order(names: Sequence[str], classes: Sequence[str]) -> str:
    """Compare the names of a file's categories with those of the classes."""
    if names and tuple(names) == tuple(classes[: len(names)]):
        return ''
    if len(set(names)) < len(names):
        return (
            f'has categories of the same name, {first_names(sorted(names))}: '
            'MMDetection makes each a class of its own. Give each its own name, or all '
            'their annotations one category'
        )
    if len(names) != len(classes):
        return (
            f'has categories for {len(names)} of the {len(classes)} classes of the '
            f'dataset, {first_names(classes)}: name those of the file in metainfo, '
            'as in '
            "metainfo=dict(classes=('cat', 'dog'))"
        )
    return (
        f'has its categories in another order, {first_names(names)}, than metainfo has '
        f'the classes, {first_names(classes)}. MMDetection numbers them in the '
        'order of the file, so their names would be mixed up. Put the names in '
        "metainfo into the order of the file's categories, the same in training and "
        "validation; if files differ, put their 'categories' into one order"
    )


def check_num_classes(
    dataset: Dataset, model: nn.Module, refused: Sequence[str] = ('few', 'many')
) -> None:
    """Check that the heads of a model have as many classes as a dataset.

    The same as MMDetection's ``NumClassCheckHook``, for heads alone: an RPN has no
    classes, a semantic head those of stuff, and the ``num_classes`` of a backbone is
    of another task. Datasets whose classes are prompts (``return_classes=True``) are
    left alone.

    Args:
        dataset: As of :func:`check_classes`.
        model: The detector.
        refused: What is an error, too 'few' classes in a head or too 'many'. The
            other is a warning: both can be tested.

    Raises:
        ValueError: If a head has fewer or more, and that is refused.
    """
    for base in base_datasets(dataset):
        classes = base.metainfo.get('classes') or ()
        if base.return_classes or not classes:
            continue
        # a panoptic dataset has classes of stuff, too, which box heads do not see
        things = base.metainfo.get('thing_classes') or classes
        for name, head in model.named_modules():
            kinds = (f'{kind.__module__}.' for kind in type(head).__mro__)
            number = getattr(head, 'num_classes', None)
            if (
                not isinstance(number, int)
                or 'rpn_head' in name
                or isinstance(head, (RPNHead, GARPNHead, FusedSemanticHead))
                or number in (len(classes), len(things))
                or not any(kind.startswith(HEADS) for kind in kinds)
            ):
                continue
            name = name.removeprefix('module.')
            kind, follows = 'few', 'objects of the last classes are background to it'
            if number > len(classes):
                kind, follows = 'many', 'its detections of the others have no class'
            text = (
                f'{base.ann_file}: the dataset has {len(classes)} classes '
                f'({first_names(classes)}), and num_classes={number} of model.{name} '
                f'is too {kind}: {follows}. Set num_classes={len(things)} there, or '
                'the classes in metainfo'
            )
            if kind in refused:
                raise ValueError(text)
            warn(text)


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Check that a label means the same class in training and validation.

    Other names are a warning: another dataset may name the same class otherwise.

    Raises:
        ValueError: If a class has another label in the validation: its results would
            be wrong.
    """
    sets = [[*base_datasets(dataset)] for dataset in (train, val)]
    if any(base.return_classes for bases in sets for base in bases):
        return  # the classes are prompts
    for first in sets[0][:1]:
        for second in sets[1]:
            ours, theirs = (
                [*(base.metainfo.get('classes') or ())] for base in (first, second)
            )
            pairs = enumerate(zip(ours, theirs, strict=False))
            other = [(i, a, b) for i, (a, b) in pairs if a != b]
            if not other:
                continue
            label, ours_is, theirs_is = other[0]
            text = (
                f'The label {label} is {ours_is!r} in the training and {theirs_is!r} '
                f'in the validation ({second.ann_file})'
            )
            if any(a in theirs or b in ours for _, a, b in other):
                raise ValueError(
                    f'{text}: the classes of metainfo must have one order, which the '
                    "'categories' of both files must have, too"
                )
            warn(f'{text}. If these are different classes, the results are wrong.')


def check_trained_classes(dataset: Dataset, trained: Sequence[str]) -> None:
    """Check that the labels of a dataset mean what they mean to a trained network.

    A network may be tested on a dataset with other classes: where only some of them
    have another label, this warns.

    Args:
        dataset: As of :func:`check_classes`.
        trained: The names of the classes, in the order of the network's labels.

    Raises:
        ValueError: If the classes are the same ones in another order.
    """
    for base in base_datasets(dataset):
        classes = base.metainfo.get('classes') or ()
        places = {name: label for label, name in enumerate(trained)}
        moved = [c for i, c in enumerate(classes) if places.get(c, i) != i]
        if not moved or base.return_classes:
            continue
        text = (
            f'it was trained with other labels for {first_names(moved)} than those of '
            f'{base.ann_file}, where the label {classes.index(moved[0])} is '
            f'{moved[0]!r} (in the checkpoint it is {places[moved[0]]}): right '
            'detections count as wrong ones'
        )
        if set(classes) == set(trained):
            raise ValueError(
                f'{text}. Give metainfo, and the categories of the file, the order of '
                'the checkpoint'
            )
        warn(f'The checkpoint: {text}.')
