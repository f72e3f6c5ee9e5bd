"""Checks of the data sets of a config, before work is lost."""

import inspect
import os
import os.path as osp
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import mmdet
from mmdet.datasets import BaseDetDataset, CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs
from torch.utils.data import Dataset

DOWNLOAD = (
    f'python {Path(mmdet.__file__).parent}/.mim/tools/misc/download_dataset.py '
    '--unzip --dataset-name'
)
# What XMLDataset reads for every name in its list: option, its default, suffix
XML_FILES = (
    ('ann_subdir', 'Annotations', '.xml'),
    ('img_subdir', 'JPEGImages', '.jpg'),
)
# By a pattern of a missing path: how to get what lies in its root
WAYS = {
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


def check_data(cfg: Mapping) -> None:
    """Look for the files and folders that the data sets of a config need.

    These are the annotation files and the picture folders of all data sets in
    the form of COCO or Pascal VOC, wrapped ones included, all that a list of VOC
    names, and the annotation files of the evaluators. No data set is built. What
    is read through a ``backend_args`` or a URL, and other data sets, are left
    alone.

    Args:
        cfg: A config, or of its keys those to check: ``train_dataloader``,
            ``val_dataloader``, ``val_evaluator``, ``test_dataloader`` and
            ``test_evaluator``.

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
            'If it lies elsewhere, set the options in brackets, or data_root beside '
            'them, with --cfg-options.'
        )


def check_pictures(dataset: Dataset) -> None:
    """Look for the pictures that a data set of MMDetection names.

    Args:
        dataset: It is built; wrappers are looked into. Other data sets, what
            is read through a ``backend_args``, and records without the path of a
            picture are left alone.

    Raises:
        FileNotFoundError: If pictures are missing. It says how many, and which.
    """
    names = defaultdict(set)
    for base in _base_datasets(dataset):
        transforms = getattr(base.pipeline, 'transforms', ())
        if any(getattr(part, 'backend_args', None) for part in (base, *transforms)):
            continue
        for i in range(len(base)):
            path = base.get_data_info(i).get('img_path')
            if isinstance(path, str) and '://' not in path:
                folder, name = osp.split(path)
                names[folder].add(name)
    missing = [text for folder in names if (text := _lacking(folder, names[folder]))]
    if missing:
        raise FileNotFoundError(
            'Pictures that the annotations name are not there. Missing:\n    '
            + '\n    '.join(missing)
            + f'\n{_ways_to_get(missing)}'
        )


def _missing_of_dataset(cfg: Mapping | None, option: str) -> Iterator[tuple[str, str]]:
    if not isinstance(cfg, Mapping):
        return
    yield from _missing_of_dataset(cfg.get('dataset'), f'{option}.dataset')
    for i, inner in enumerate(cfg.get('datasets') or []):
        yield from _missing_of_dataset(inner, f'{option}.datasets.{i}')

    cls = cfg.get('type')
    cls = DATASETS.get(cls) if isinstance(cls, str) else cls
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
    etc = ', ...' if len(lacking) > 3 else ''
    return (
        f'{osp.join(folder, "")}: {len(lacking)} of {len(names)} files, '
        f'{", ".join(lacking[:3])}{etc}'
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
