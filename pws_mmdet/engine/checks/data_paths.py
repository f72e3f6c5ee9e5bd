"""A search for the files and folders that a config names, before anything is read."""

import functools
import inspect
import mmap
import os
import os.path as osp
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.datasets.transforms import LoadPanopticAnnotations
from mmdet.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs

from ...utils.config import type_name
from .hosts import is_of_host
from .missing_files import (
    CIFAR10,
    CIFAR10_FILES,
    CIFAR10_URL,
    describe_missing,
    ways_to_get,
)

# What XMLDataset reads for every name in its list: an option, its default, a suffix
XML_FILES = (
    ('ann_subdir', 'Annotations', '.xml'),
    ('img_subdir', 'JPEGImages', '.jpg'),
)
# Datasets of mmpretrain that read a folder of images for each class
CLASS_FOLDERS = ('CustomDataset', 'ImageNet')
# An image's absolute path in a file of COCO, or in a list with an image in each line
ABSOLUTE_NAME = re.compile(rb'("file_name"\s*:\s*"|^)(/|[A-Za-z]:[/\\]|\w+://)', re.M)
# A missing path, and the option of the config that names it
Missing = tuple[str, str]


def check_data(
    cfg: Mapping,
    elsewhere: str = 'set the options in brackets, or data_root beside them, with '
    '--cfg-options',
) -> None:
    """Look for the files and folders that the datasets of a config need.

    It looks for:

    * the annotation files and image folders of datasets in the form of COCO or Pascal
      VOC, also inside wrappers, and every file that a list of VOC names;
    * the annotation files of evaluators;
    * the folders of mmpretrain's CustomDataset and ImageNet;
    * CIFAR-10, if it cannot be downloaded, or its zip file.

    No dataset is built. Other datasets are not checked, nor is anything that is read
    through ``backend_args`` or a URL.

    Args:
        cfg: A config, or those of its keys to check: ``train_dataloader``,
            ``val_dataloader``, ``val_evaluator``, ``test_dataloader`` and
            ``test_evaluator``.
        elsewhere: The end of the message: what to do if the data is elsewhere.

    Raises:
        FileNotFoundError: If anything is missing. The message lists every missing
            path, the options that name it, and how to get the data.
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
            'Data that the config names is missing:\n'
            + '\n'.join(lines)
            + f'\n{ways_to_get(missing)}'
            f'If the data is elsewhere, {elsewhere}.'
        )


def _missing_of_dataset(cfg: Mapping | None, option: str) -> Iterator[Missing]:
    if not isinstance(cfg, Mapping):
        return
    kind = cfg.get('type')
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    # A user's own wrapper may leave out files, so it is not looked into.
    if not inspect.isclass(cls) or is_of_host(cls):
        yield from _missing_of_dataset(cfg.get('dataset'), f'{option}.dataset')
        for i, inner in enumerate(cfg.get('datasets') or []):
            yield from _missing_of_dataset(inner, f'{option}.datasets.{i}')

    # mmpretrain's datasets are not in MMDetection's registry.
    if cls is None or cls.__module__.startswith('mmpretrain.'):
        name = type_name(cfg)
        if name in CLASS_FOLDERS:
            yield from _missing_classes(cfg, option)
        elif name in ('CIFAR10', 'AnyCIFAR10'):
            yield from _missing_cifar10(cfg, option)
    elif inspect.isclass(cls) and issubclass(cls, (CocoDataset, XMLDataset)):
        # Only the author of a class knows what its own load_data_list reads.
        if is_of_host(cls.load_data_list) and not _is_remote(cfg):  # type: ignore
            yield from _missing_of_detection(cls, cfg, option)


def _is_remote(cfg: Mapping) -> bool:
    """Tell whether a dataset or its pipeline reads through a file backend."""
    parts = [part for part in (cfg, *_pipeline(cfg)) if isinstance(part, Mapping)]
    remote = ('backend_args', 'file_client_args')
    return any(part.get(name) for part in parts for name in remote)


def _pipeline(cfg: Mapping) -> Sequence:
    return cfg.get('pipeline') or []


def _missing_of_detection(cls: Any, cfg: Mapping, option: str) -> Iterator[Missing]:
    """Yield what a dataset in the form of COCO or Pascal VOC lacks."""

    def resolve(path: str) -> str:
        root = cfg.get('data_root')
        return osp.join(root, path) if root and not is_abs(path) else path

    pipeline = _pipeline(cfg)
    ann_file = resolve(cfg.get('ann_file') or '')
    if not _exists(ann_file):
        yield ann_file, f'{option}.ann_file'
    reads_images = is_of_host(cls.prepare_data) and _reads_images(pipeline)
    for key, prefix in (cfg.get('data_prefix') or {}).items():
        folder = resolve(prefix)
        if key == 'sub_data_root' and issubclass(cls, XMLDataset):
            if not _exists(folder):
                yield folder, f'{option}.data_prefix.{key}'
            elif cls.load_data_list is XMLDataset.load_data_list:
                reads = is_of_host(cls.parse_data_info), reads_images
                yield from _missing_of_voc(cfg, option, ann_file, folder, reads)
        elif key == 'img' and reads_images or key == 'seg' and _reads_maps(pipeline):
            if not _exists(folder) and not _has_absolute_names(ann_file):
                yield folder, f'{option}.data_prefix.{key}'


def _missing_of_voc(
    cfg: Mapping, option: str, ann_file: str, folder: str, reads: Sequence[bool]
) -> Iterator[Missing]:
    if not (osp.isfile(ann_file) and osp.isdir(folder)):
        return
    ids = list_from_file(ann_file)
    for is_read, (name, default, suffix) in zip(reads, XML_FILES, strict=True):
        names = defaultdict(set)
        for i in ids if is_read else ():  # A name may contain folders.
            path = osp.join(folder, cfg.get(name, default), f'{i}{suffix}')
            names[osp.dirname(path)].add(osp.basename(path))
        for subfolder in names:
            if missing := describe_missing(subfolder, names[subfolder]):
                yield missing, f'{option}.{name}'


def _reads_images(pipeline: Sequence) -> bool:
    """Tell whether MMDetection's own transforms read image files.

    It is False if a transform of the user comes first: that one may read the images.
    """
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
    """Tell whether an annotation file names images by absolute paths."""
    if not osp.isfile(ann_file) or not osp.getsize(ann_file):
        return False
    with open(ann_file, 'rb') as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return bool(re.search(ABSOLUTE_NAME, text))


def _missing_classes(cfg: Mapping, option: str) -> Iterator[Missing]:
    # ImageNet uses its split as the folder's name, and may have a list in meta/.
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
        if not _exists(ann_file):
            yield ann_file, f'{option}.ann_file'
    reads_images = _reads_images(cfg.get('pipeline') or [])
    reads_images = reads_images and not (ann_file and _has_absolute_names(ann_file))
    has_list = ann_file or (split and osp.isfile(osp.join(root, f'meta/{split}.txt')))
    if has_list or not cfg.get('with_label', True):
        if reads_images and not osp.isdir(folder):
            yield osp.join(folder, ''), f'{option}.{key}'
    elif not (osp.isdir(folder) and any(e.is_dir() for e in os.scandir(folder))):
        yield osp.join(folder, 'CLASS', ''), f'{option}.{key}'


def _missing_cifar10(cfg: Mapping, option: str) -> Iterator[Missing]:
    key = 'data_root' if cfg.get('data_root') else 'data_prefix'
    root = osp.join(cfg.get('data_root') or '', cfg.get('data_prefix') or '')
    if cfg.get('backend_args') or '://' in root:
        return
    root = root.rstrip('/')
    if root.endswith('.zip') and type_name(cfg) == 'AnyCIFAR10':
        if not osp.isfile(root):
            yield root, f'{option}.{key}'
        return
    folder = osp.join(root, CIFAR10)
    archive = osp.join(root, osp.basename(CIFAR10_URL))
    missing = describe_missing(folder, CIFAR10_FILES)
    if missing and not osp.isfile(archive):
        if not (cfg.get('download', True) and is_reachable(CIFAR10_URL)):
            is_there = osp.isdir(folder)
            yield missing if is_there else osp.join(folder, ''), f'{option}.{key}'


@functools.cache  # A program may check the data of many runs.
def is_reachable(url: str) -> bool:
    """Tell whether a server answers for a URL within 10 seconds."""
    try:
        request = urllib.request.Request(url, method='HEAD')
        with urllib.request.urlopen(request, timeout=10):
            return True
    except OSError:
        return False


def _missing_of_evaluator(cfg, option: str) -> Iterator[Missing]:
    if isinstance(cfg, (list, tuple)):
        for i, inner in enumerate(cfg):
            yield from _missing_of_evaluator(inner, f'{option}.{i}')
    elif isinstance(cfg, Mapping) and not cfg.get('backend_args'):
        kind = cfg.get('type')
        cls = METRICS.get(kind) if isinstance(kind, str) else kind
        if not inspect.isclass(cls) or not is_of_host(cls.__init__):
            return  # Only the author of the class knows what its ann_file means.
        path = cfg.get('ann_file')
        if isinstance(path, str) and not _exists(path):
            yield path, f'{option}.ann_file'


def _exists(path: str) -> bool:
    return not path or '://' in path or osp.exists(path)
