"""Checks of the data sets of a config, before work is lost."""

import contextlib
import functools
import inspect
import math
import os
import os.path as osp
import re
import reprlib
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet
import mmdet.evaluation.metrics.coco_metric as coco_metric
import numpy as np
from mmdet.datasets import BaseDetDataset, CocoDataset, XMLDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.evaluator import Evaluator
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs
from torch.utils.data import Dataset

from ..config import type_name

DOWNLOAD = (
    f'python {Path(mmdet.__file__).parent}/.mim/tools/misc/download_dataset.py '
    '--unzip --dataset-name'
)
# What XMLDataset reads for every name in its list: option, its default, suffix
XML_FILES = (
    ('ann_subdir', 'Annotations', '.xml'),
    ('img_subdir', 'JPEGImages', '.jpg'),
)
# Data sets of mmpretrain that read a folder of pictures for each class
CLASS_FOLDERS = ('CustomDataset', 'ImageNet')
# What its CIFAR10 downloads if it is missing: the folder of its files, the archive
CIFAR10 = 'cifar-10-batches-py'
CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
# Pixels: of larger masks and boxes nothing is left but overflows
FAR = 1e6
# How pycocotools writes numbers: 5 bits a character, of which all but a number's last
# are marked by the sixth
RLE_TEXT = re.compile(r'([P-o]{0,6}[0-O])+')
# By a pattern of a missing path: how to get what lies in its root
WAYS = {
    r'(?P<root>.*\bdigits_imagefolder)/': (
        'Write the digits:\n'
        '    python tools/dataset_converters/digits_to_imagefolder.py {root}\n'
    ),
    r'(?P<root>.*\bdigits_textured)/': (
        'Draw the digits:\n'
        '    python tools/dataset_converters/digits_to_imagefolder.py {root} '
        '--textured\n'
    ),
    rf'(?P<root>.*)/{CIFAR10}': (
        'CIFAR-10 is expected as {root}/' + CIFAR10 + '. The first training downloads '
        'it where there is a network; else bring it:\n'
        f'    curl -O {CIFAR10_URL}\n'
        '    tar -xzf cifar-10-python.tar.gz -C {root}\n'
    ),
    r'(?P<root>.*(?i:imagenet|ilsvrc|in1k)[^/]*)/(train|val)\b': (
        "ImageNet is expected in torchvision's layout, {root}/train/CLASS and "
        '{root}/val/CLASS. It is given to those who sign up at '
        'https://image-net.org/download; link a copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
    r'(?P<root>.*\bdigits)/': (
        'Draw the digits:\n'
        '    python tools/dataset_converters/digits_to_coco.py {root}\n'
    ),
    r'(?P<root>.*\bbccd)/': (
        'Download BCCD:\n'
        '    git clone https://github.com/Shenggan/BCCD_Dataset {root}\n'
    ),
    r'(?P<root>.*)/VOC20(07|12)\b': (
        'Pascal VOC is expected as {root}/VOC2007 and {root}/VOC2012, each with '
        'ImageSets/Main, Annotations and JPEGImages. Download it (3 GB, as '
        '{parent}/VOCdevkit),\n'
        '    {download} voc2007 --save-dir {parent}\n'
        '    {download} voc2012 --save-dir {parent}\n'
        'or link a copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
    r'(?P<root>.*?)/(annotations/\w+_)?(train|val|test)2017\b': (
        'COCO 2017 is expected as {root}/annotations/instances_train2017.json and '
        'instances_val2017.json, {root}/train2017 and {root}/val2017. Download it '
        '(with its test and unlabeled pictures),\n'
        '    {download} coco2017 --save-dir {root}\n'
        'or link a copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
}


def check_data(
    cfg: Mapping,
    elsewhere: str = 'set the options in brackets, or data_root beside them, with '
    '--cfg-options',
) -> None:
    """Look for the files and folders that the data sets of a config need.

    These are the annotation files and the picture folders of all data sets in
    the form of COCO or Pascal VOC, wrapped ones included, all that a list of VOC
    names, and the annotation files of the evaluators; of mmpretrain's data sets,
    the folders of CustomDataset and ImageNet, and CIFAR10 where it cannot be
    downloaded. No data set is built. What is read through a ``backend_args`` or a
    URL, and other data sets, are left alone.

    Args:
        cfg: A config, or of its keys those to check: ``train_dataloader``,
            ``val_dataloader``, ``val_evaluator``, ``test_dataloader`` and
            ``test_evaluator``.
        elsewhere: What to do about data that lies elsewhere, for the message.

    Raises:
        FileNotFoundError: If anything is missing. It names all that is, the
            options that ask for it, and how to get it.
    """
    missing = defaultdict(list)
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, Mapping):
            option = f'{split}_dataloader.dataset'
            for path, name in _missing_of_dataset(loader.get('dataset'), option):
                missing[path].append(name)
        evaluator = cfg.get(f'{split}_evaluator')
        for path, name in _missing_of_evaluator(evaluator, f'{split}_evaluator'):
            missing[path].append(name)
    if missing:
        lines = [f'    {path}  ({", ".join(names)})' for path, names in missing.items()]
        raise FileNotFoundError(
            'The data that the config names is not there. Missing:\n'
            + '\n'.join(lines)
            + f'\n{_ways_to_get(missing)}'
            f'If it lies elsewhere, {elsewhere}.'
        )


def check_pictures(dataset: Dataset) -> None:
    """Look for the pictures that a data set of MMDetection names, and for masks.

    Args:
        dataset: It is built; wrappers are looked into. Other data sets, what
            is read through a ``backend_args``, and records without the path of a
            picture are left alone.

    Raises:
        FileNotFoundError: If pictures are missing. It says how many, and which.
        ValueError: If an object has no mask, and the pipeline loads masks.
    """
    names = defaultdict(set)
    for base in _base_datasets(dataset):
        transforms = getattr(base.pipeline, 'transforms', ())
        with_mask = any(getattr(part, 'with_mask', False) for part in transforms)
        is_remote = any(
            getattr(part, 'backend_args', None) for part in (base, *transforms)
        )
        for i in range(len(base)):
            record = base.get_data_info(i)
            path = record.get('img_path')
            instances = record.get('instances', ()) if with_mask else ()
            if not all('mask' in instance for instance in instances):
                raise ValueError(
                    f'{base.ann_file}: an object of {path} has no segmentation, and '
                    'the pipeline loads masks (with_mask=True)'
                )
            if isinstance(path, str) and '://' not in path and not is_remote:
                folder, name = osp.split(path)
                names[folder].add(name)
    missing = [text for folder in names if (text := _lacking(folder, names[folder]))]
    if missing:
        raise FileNotFoundError(
            'Pictures that the annotations name are not there. Missing:\n    '
            + '\n    '.join(missing)
            + f'\n{_ways_to_get(missing)}'
        )


def check_classes(dataset: Dataset) -> None:
    """Look for the classes of a data set among the categories of its file.

    MMDetection would leave out those that are not there, and give their labels to
    the classes that follow.

    Args:
        dataset: As of :func:`check_pictures`.

    Raises:
        ValueError: If there are others than the file has.
    """
    for base in _base_datasets(dataset):
        classes = base.metainfo.get('classes') or ()
        if isinstance(base, CocoDataset) and len(base.cat_ids) != len(classes):
            raise ValueError(
                f'{base.ann_file} has categories for {len(base.cat_ids)} of the '
                f'{len(classes)} classes of the data set, {_some(classes)}: name '
                'those of the file in metainfo, as in '
                "metainfo=dict(classes=('cat', 'dog'))"
            )


def check_truth(evaluator: Evaluator) -> None:
    """Look for what COCO's metrics need of each annotation.

    Raises:
        ValueError: If an annotation lacks it. They would fail after an epoch.
    """
    for metric in evaluator.metrics:
        truth = getattr(metric, '_coco_api', None)
        if not isinstance(truth, CheckedCOCO):
            continue
        needed = ['iscrowd', *(['segmentation'] if 'segm' in metric.metrics else [])]
        for annotation in truth.dataset.get('annotations', ()):
            # pycocotools notes it in an array of floats where 0 is: found by none
            i = annotation['id']
            if not (isinstance(i, int) and 0 < abs(i) < 2**53):
                raise ValueError(
                    f'{truth.path}: {type(metric).__name__} needs annotation ids '
                    f'that are numbers, and not 0, got {i!r}'
                )
            for key in needed:
                if annotation.get(key) in (None, []):
                    raise ValueError(
                        f'{truth.path}: the annotation {annotation["id"]!r} has no '
                        f'{key!r}, which {type(metric).__name__} needs'
                    )


class CheckedCOCO(COCO):
    """COCO's own reader, with errors that say which file is wrong, and what of it.

    Raises:
        ValueError: If the file is not in the form of COCO (see :func:`check_coco`).
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        self.path = annotation_file
        try:
            super().__init__(annotation_file)
        except (AssertionError, RecursionError, ValueError) as e:  # or not UTF-8
            raise ValueError(
                f'{annotation_file} cannot be used as annotations in the form of '
                f'COCO: {e}'
            ) from None

    def createIndex(self) -> None:
        check_coco(self.dataset)
        super().createIndex()


@contextlib.contextmanager
def checked_annotations() -> Iterator[None]:
    """Data sets and metrics that are built meanwhile check the files they read."""
    places = ((CocoDataset, 'COCOAPI'), (coco_metric, 'COCO'))
    stock = [getattr(*place) for place in places]
    try:
        for place in places:
            setattr(*place, CheckedCOCO)
        yield
    finally:
        for place, value in zip(places, stock, strict=True):
            setattr(*place, value)


def check_coco(content: Mapping[str, Any]) -> None:
    """Check annotations in the form of COCO.

    ``annotations`` may be missing, as in COCO's lists of test pictures, and a box may
    have no area, as some of COCO's.

    Raises:
        ValueError: If anything is missing, given twice, or of another kind than
            MMDetection takes. It names the first of it.
    """
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key, [] if key == 'annotations' else None)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) for entry in entries
        ):
            raise ValueError(f'{key!r} is missing, or no list of objects')
    if not content['images']:
        raise ValueError("'images' is empty")
    images = _by_id(content['images'], 'image')
    categories = _by_id(content['categories'], 'category')
    for i, image in images.items():
        if not isinstance(image.get('file_name'), str):
            raise ValueError(f"the image {i!r} has no 'file_name'")
        for key in ('width', 'height'):
            value = image.get(key)
            if not (isinstance(value, (int, float)) and 0 < value < FAR):
                raise ValueError(
                    f'the {key} of the image {i!r} must be a positive number, not '
                    f'{reprlib.repr(value)}'
                )
    names = set()
    for i, category in categories.items():
        if not isinstance(category.get('name'), str):
            raise ValueError(f"the category {i!r} has no 'name'")
        if category['name'] in names:
            raise ValueError(f'the category name {category["name"]!r} is given twice')
        names.add(category['name'])
    annotations = _by_id(content.get('annotations', []), 'annotation')
    for i, annotation in annotations.items():
        for key, known in (('image_id', images), ('category_id', categories)):
            value = annotation.get(key)
            if isinstance(value, (list, dict)) or value not in known:
                raise ValueError(
                    f'the annotation {i!r} has the {key} {reprlib.repr(value)}, which '
                    'is not there'
                )
        box = annotation.get('bbox')
        if not _is_box(box):
            raise ValueError(
                f'the bbox of the annotation {i!r} must be [x, y, width, height], '
                f'not {reprlib.repr(box)}'
            )
        area = annotation.get('area')
        if not (isinstance(area, (int, float)) and 0 <= area < FAR**2):
            raise ValueError(
                f'the area of the annotation {i!r} must be a number, not '
                f"{reprlib.repr(area)}; a box's is width * height"
            )
        if annotation.get('iscrowd') not in (None, 0, 1):
            raise ValueError(
                f'the iscrowd of the annotation {i!r} must be 0 or 1, not '
                f'{reprlib.repr(annotation["iscrowd"])}'
            )
        if wrong := _wrong_of_mask(
            annotation.get('segmentation'), images[annotation['image_id']]
        ):
            raise ValueError(f'the segmentation of the annotation {i!r} {wrong}')


def _wrong_of_mask(mask: Any, image: dict) -> str:
    """Cheap, as there are many: a few calls for a polygon, none for its points."""
    if mask is None:
        return ''
    if isinstance(mask, list):
        for polygon in mask:
            if not (
                isinstance(polygon, list)
                and len(polygon) >= 6
                and len(polygon) % 2 == 0
                and {float, int}.issuperset(map(type, polygon))
                and -FAR < min(polygon)
                and max(polygon) < FAR
                and not math.isnan(sum(polygon))
            ):
                return (
                    'must be polygons [x, y, x, y, x, y, ...] of 3 points or more, '
                    f'not {reprlib.repr(polygon)}'
                )
        return ''
    if not isinstance(mask, dict):
        return f'must be a list of polygons, or RLE, not {reprlib.repr(mask)}'
    size, counts = [image['height'], image['width']], mask.get('counts')
    if mask.get('size') != size:
        return (
            f'must have the size [height, width] of its picture, {size}, not '
            f'{reprlib.repr(mask.get("size"))}'
        )
    if isinstance(counts, str) and RLE_TEXT.fullmatch(counts):
        counts = _counts_of(counts)
    is_rle = isinstance(counts, list) and {int}.issuperset(map(type, counts))
    if not is_rle or min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        return (
            f'must have counts that add up to its {size[0]} x {size[1]} pixels, not '
            f'{reprlib.repr(mask.get("counts"))}'
        )
    return ''


def _counts_of(text: str) -> list[int]:
    """The counts of an RLE, of which pycocotools writes differences."""
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    counts -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts.tolist()


def _by_id(entries: Sequence[dict], kind: str) -> dict[Any, dict]:
    by_id = {}
    for i, entry in enumerate(entries):
        key = entry.get('id')
        if type(key) not in (int, str):
            raise ValueError(f'number {i} of the {kind} entries has no id')
        if type(key) is not type(entries[0]['id']):
            raise ValueError(
                f'some of the {kind} ids are texts, others numbers: '
                f'{entries[0]["id"]!r}, {key!r}'
            )
        if key in by_id:
            raise ValueError(f'the {kind} id {key!r} is given twice')
        by_id[key] = entry
    return by_id


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and -FAR < v < FAR for v in box)
        and box[2] >= 0 <= box[3]
    )


def _some(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:3])) + ', ...' * (len(names) > 3)


def _missing_of_dataset(cfg: Mapping | None, option: str) -> Iterator[tuple[str, str]]:
    if not isinstance(cfg, Mapping):
        return
    yield from _missing_of_dataset(cfg.get('dataset'), f'{option}.dataset')
    for i, inner in enumerate(cfg.get('datasets') or []):
        yield from _missing_of_dataset(inner, f'{option}.datasets.{i}')

    kind = cfg.get('type')
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    # mmpretrain's types are not in MMDetection's scope, and may not be installed
    if cls is None or cls.__module__.startswith('mmpretrain.'):
        name = type_name(cfg)
        if name in CLASS_FOLDERS:
            yield from _missing_classes(cfg, option)
        elif name == 'CIFAR10':
            yield from _missing_cifar10(cfg, option)
    if not (inspect.isclass(cls) and issubclass(cls, (CocoDataset, XMLDataset))):
        return
    pipeline = [part for part in cfg.get('pipeline') or [] if isinstance(part, Mapping)]
    if any(part.get('backend_args') for part in (cfg, *pipeline)):
        return

    def resolve(path: str) -> str:
        root = cfg.get('data_root')
        return osp.join(root, path) if root and not is_abs(path) else path

    ann_file = resolve(cfg.get('ann_file') or '')
    if not _is_there(ann_file):
        yield ann_file, f'{option}.ann_file'
    for key, prefix in (cfg.get('data_prefix') or {}).items():
        folder = resolve(prefix)
        if not _is_there(folder):
            yield folder, f'{option}.data_prefix.{key}'
        elif (
            key == 'sub_data_root'
            and cls.load_data_list is XMLDataset.load_data_list
            and osp.isfile(ann_file)
            and osp.isdir(folder)
        ):
            ids = list_from_file(ann_file)
            for name, default, suffix in XML_FILES:
                subfolder = osp.join(folder, cfg.get(name, default))
                if text := _lacking(subfolder, {f'{i}{suffix}' for i in ids}):
                    yield text, f'{option}.{name}'


def _missing_classes(cfg: Mapping, option: str) -> Iterator[tuple[str, str]]:
    # ImageNet names the folder by its split, and has a list of pictures in meta/
    root, split = cfg.get('data_root') or '', cfg.get('split') or ''
    prefix, ann_file = cfg.get('data_prefix') or split, cfg.get('ann_file')
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    folder = osp.expanduser(osp.join(root, prefix))
    if cfg.get('backend_args') or '://' in folder:
        return
    key = 'data_prefix' if cfg.get('data_prefix') else 'data_root'
    if ann_file:
        ann_file = osp.expanduser(osp.join(root, ann_file))
        if not _is_there(ann_file):
            yield ann_file, f'{option}.ann_file'
    has_list = ann_file or (split and osp.isfile(osp.join(root, f'meta/{split}.txt')))
    if has_list or not cfg.get('with_label', True):
        if not osp.isdir(folder):
            yield osp.join(folder, ''), f'{option}.{key}'
    elif not (osp.isdir(folder) and any(e.is_dir() for e in os.scandir(folder))):
        yield osp.join(folder, 'CLASS', ''), f'{option}.{key}'


def _missing_cifar10(cfg: Mapping, option: str) -> Iterator[tuple[str, str]]:
    key = 'data_root' if cfg.get('data_root') else 'data_prefix'
    root = osp.join(cfg.get('data_root') or '', cfg.get('data_prefix') or '')
    if cfg.get('backend_args') or '://' in root:
        return
    folder = osp.join(root, CIFAR10)
    there = osp.isdir(folder) or osp.isfile(osp.join(root, osp.basename(CIFAR10_URL)))
    if not there and not (cfg.get('download', True) and _answers(CIFAR10_URL)):
        yield osp.join(folder, ''), f'{option}.{key}'


@functools.cache  # of all runs of a program
def _answers(url: str) -> bool:
    try:
        request = urllib.request.Request(url, method='HEAD')
        with urllib.request.urlopen(request, timeout=10):
            return True
    except OSError:  # URLError is one
        return False


def _missing_of_evaluator(cfg, option: str) -> Iterator[tuple[str, str]]:
    if isinstance(cfg, (list, tuple)):
        for i, inner in enumerate(cfg):
            yield from _missing_of_evaluator(inner, f'{option}.{i}')
    elif isinstance(cfg, Mapping) and not cfg.get('backend_args'):
        path = cfg.get('ann_file')
        if isinstance(path, str) and not _is_there(path):
            yield path, f'{option}.ann_file'


def _base_datasets(dataset) -> Iterator[BaseDetDataset]:
    if isinstance(dataset, BaseDetDataset):
        yield dataset
        return
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from _base_datasets(inner)


def _is_there(path: str) -> bool:
    return not path or '://' in path or osp.exists(path)


def _lacking(folder: str, names: set[str]) -> str | None:
    # One listing is faster than a question per file, above all over a network.
    there = os.listdir(folder or '.') if osp.isdir(folder or '.') else ()
    lacking = sorted(names.difference(there))
    if not lacking:
        return None
    return (
        f'{osp.join(folder, "")}: {len(lacking)} of {len(names)} files, '
        f'{_some(lacking)}'
    )


def _ways_to_get(paths) -> str:
    ways = {}
    for path in paths:
        for pattern, text in WAYS.items():
            if match := re.match(pattern, path):
                root = match['root']
                parent = osp.dirname(root) or '.'
                ways[text.format(root=root, parent=parent, download=DOWNLOAD)] = None
                break
    return ''.join(ways)
