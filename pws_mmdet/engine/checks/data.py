"""Looks for the files and folders that a config names, before anything is read."""

import functools
import inspect
import mmap
import os
import os.path as osp
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.datasets.transforms import LoadPanopticAnnotations
from mmdet.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs

from ...utils.config import type_name
from ...utils.names import first_names

DOWNLOAD = (
    f'python {Path(mmdet.__file__).parent}/.mim/tools/misc/download_dataset.py '
    '--unzip --dataset-name'
)
# What XMLDataset reads for every name in its list: option, its default, suffix
XML_FILES = (
    ('ann_subdir', 'Annotations', '.xml'),
    ('img_subdir', 'JPEGImages', '.jpg'),
)
# Packages whose datasets, transforms and metrics read what is known here
HOSTS = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'pws_mmdet')
# Data sets of mmpretrain that read a folder of images for each class
CLASS_FOLDERS = ('CustomDataset', 'ImageNet')
# What its CIFAR10 downloads if it is missing: the folder of its files, the archive
CIFAR10 = 'cifar-10-batches-py'
CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
# In a file of COCO, and in a list with one image a line
ABSOLUTE_NAME = re.compile(rb'("file_name"\s*:\s*"|^)(/|[A-Za-z]:[/\\]|\w+://)', re.M)
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
        '(with its test and unlabeled images),\n'
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

    These are the annotation files and the image folders of all data sets in
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
            + f'\n{ways_to_get(missing)}'
            f'If it lies elsewhere, {elsewhere}.'
        )


def is_of_host(part: Any) -> bool:
    """Whether a class or function is of MMDetection, its kin, or this package."""
    return part.__module__.partition('.')[0] in HOSTS


def _missing_of_dataset(cfg: Mapping | None, option: str) -> Iterator[tuple[str, str]]:
    if not isinstance(cfg, Mapping):
        return
    kind = cfg.get('type')
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    # A user's own wrapper may leave files out, so it is not looked into.
    if not inspect.isclass(cls) or is_of_host(cls):
        yield from _missing_of_dataset(cfg.get('dataset'), f'{option}.dataset')
        for i, inner in enumerate(cfg.get('datasets') or []):
            yield from _missing_of_dataset(inner, f'{option}.datasets.{i}')

    # mmpretrain's types are not in MMDetection's scope, and may not be installed
    if cls is None or cls.__module__.startswith('mmpretrain.'):
        name = type_name(cfg)
        if name in CLASS_FOLDERS:
            yield from _missing_classes(cfg, option)
        elif name == 'CIFAR10':
            yield from _missing_cifar10(cfg, option)
    if not (inspect.isclass(cls) and issubclass(cls, (CocoDataset, XMLDataset))):
        return
    pipeline = cfg.get('pipeline') or []
    options = [part for part in (cfg, *pipeline) if isinstance(part, Mapping)]
    remote = ('backend_args', 'file_client_args')
    if any(part.get(name) for part in options for name in remote):
        return
    if not is_of_host(cls.load_data_list):  # its author alone knows what it reads
        return

    def resolve(path: str) -> str:
        root = cfg.get('data_root')
        return osp.join(root, path) if root and not is_abs(path) else path

    ann_file = resolve(cfg.get('ann_file') or '')
    if not _is_there(ann_file):
        yield ann_file, f'{option}.ann_file'
    reads_images = is_of_host(cls.prepare_data) and _reads_images(pipeline)
    for key, prefix in (cfg.get('data_prefix') or {}).items():
        folder = resolve(prefix)
        if key == 'sub_data_root' and issubclass(cls, XMLDataset):
            if not _is_there(folder):
                yield folder, f'{option}.data_prefix.{key}'
            elif cls.load_data_list is XMLDataset.load_data_list:
                own = is_of_host(cls.parse_data_info), reads_images
                yield from _missing_of_voc(cfg, option, ann_file, folder, own)
        elif key == 'img' and reads_images or key == 'seg' and _reads_maps(pipeline):
            if not _is_there(folder) and not _has_absolute_names(ann_file):
                yield folder, f'{option}.data_prefix.{key}'


def _missing_of_voc(
    cfg: Mapping, option: str, ann_file: str, folder: str, reads: Sequence[bool]
) -> Iterator[tuple[str, str]]:
    if not (osp.isfile(ann_file) and osp.isdir(folder)):
        return
    ids = list_from_file(ann_file)
    for is_read, (name, default, suffix) in zip(reads, XML_FILES, strict=True):
        names = defaultdict(set)
        for i in ids if is_read else ():  # a name may have folders in it
            path = osp.join(folder, cfg.get(name, default), f'{i}{suffix}')
            names[osp.dirname(path)].add(osp.basename(path))
        for subfolder in names:
            if missing := describe_missing(subfolder, names[subfolder]):
                yield missing, f'{option}.{name}'


def _reads_images(pipeline: Sequence) -> bool:
    """Whether it is known that image files are read, before a user's own transform."""
    for part in pipeline:
        kind = part.get('type') if isinstance(part, Mapping) else type(part)
        cls = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
        if not inspect.isclass(cls) or not is_of_host(cls):
            return False
        if getattr(cls, 'transform', None) is LoadImageFromFile.transform:
            return True
    return not pipeline


def _reads_maps(pipeline: Sequence) -> bool:
    parts = [part for part in pipeline if isinstance(part, Mapping)]
    return any(
        part.get('with_seg')
        or part.get('type') in ('LoadPanopticAnnotations', LoadPanopticAnnotations)
        for part in parts
    )


def _has_absolute_names(ann_file: str) -> bool:
    """Whether a file of annotations names its images with their whole paths."""
    if not osp.isfile(ann_file) or not osp.getsize(ann_file):
        return False
    with open(ann_file, 'rb') as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return bool(re.search(ABSOLUTE_NAME, text))


def _missing_classes(cfg: Mapping, option: str) -> Iterator[tuple[str, str]]:
    # ImageNet names the folder by its split, and has a list of images in meta/
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
    reads_images = _reads_images(cfg.get('pipeline') or [])
    reads_images = reads_images and not (ann_file and _has_absolute_names(ann_file))
    has_list = ann_file or (split and osp.isfile(osp.join(root, f'meta/{split}.txt')))
    if has_list or not cfg.get('with_label', True):
        if reads_images and not osp.isdir(folder):
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


@functools.cache  # ask once, not once for each run of a program
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
        kind = cfg.get('type')
        cls = METRICS.get(kind) if isinstance(kind, str) else kind
        if not inspect.isclass(cls) or not is_of_host(cls.__init__):
            return  # its author alone knows what ann_file is
        path = cfg.get('ann_file')
        if isinstance(path, str) and not _is_there(path):
            yield path, f'{option}.ann_file'


def _is_there(path: str) -> bool:
    return not path or '://' in path or osp.exists(path)


def describe_missing(folder: str, names: set[str]) -> str | None:
    """Say which files are not in a folder, or None.

    Args:
        folder: It need not be there.
        names: Names of files in it, without folders.
    """
    # One listing is faster than a question per file, above all over a network.
    there = os.listdir(folder or '.') if osp.isdir(folder or '.') else ()
    lacking = sorted(names.difference(there))
    if not lacking:
        return None
    counts = f'{len(lacking)} of {len(names)} files'
    return f'{osp.join(folder, "")}: {counts}, {first_names(lacking)}'


def ways_to_get(paths: Iterable[str]) -> str:
    """Say how to get the datasets that missing paths belong to."""
    ways = {}
    for path in paths:
        for pattern, text in WAYS.items():
            if match := re.match(pattern, path):
                root = match['root']
                parent = osp.dirname(root) or '.'
                ways[text.format(root=root, parent=parent, download=DOWNLOAD)] = None
                break
    return ''.join(ways)
