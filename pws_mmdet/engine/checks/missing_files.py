"""Messages about files that are missing, and how to get the dataset they belong to."""

import os
import os.path as osp
import re
from collections.abc import Iterable
from pathlib import Path

import mmdet

from ...utils.names import first_names
from ...utils.repository import shown_path

# MMDetection's own program for downloading datasets
DOWNLOAD = (
    f'python {Path(mmdet.__file__).parent}/.mim/tools/misc/download_dataset.py '
    '--unzip --dataset-name'
)
# The folder of CIFAR-10, its files, and the archive of all
CIFAR10 = 'cifar-10-batches-py'
CIFAR10_FILES = {'test_batch', *(f'data_batch_{i}' for i in range(1, 6))}
CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
# How to get a dataset, by a pattern for a path in it. The pattern names its root.
WAYS = {
    r'(?P<root>.*\bdigits_imagefolder)/': (
        'Write the digits:\n    python {converters}/digits_to_imagefolder.py {root}\n'
    ),
    r'(?P<root>.*\bdigits_textured)/': (
        'Draw the digits:\n'
        '    python {converters}/digits_to_imagefolder.py {root} '
        '--textured\n'
    ),
    rf'(?P<root>.*)/{CIFAR10}': (
        'CIFAR-10 is expected as {root}/' + CIFAR10 + '. The first training downloads '
        'it if there is a network connection. Otherwise bring it:\n'
        f'    curl -O {CIFAR10_URL}\n'
        '    mkdir -p {root}\n'
        '    tar -xzf cifar-10-python.tar.gz -C {root}\n'
    ),
    r'(?P<root>.*(?i:imagenet|ilsvrc|in1k)[^/]*)/(train|val)\b': (
        "ImageNet is expected in torchvision's layout, {root}/train/CLASS and "
        '{root}/val/CLASS. Sign up at '
        'https://image-net.org/download to download it, and link your copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
    r'(?P<root>.*\bdigits)/': (
        'Draw the digits:\n    python {converters}/digits_to_coco.py {root}\n'
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
        'or link your copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
    r'(?P<root>.*?)/(annotations/\w+_)?(train|val|test)2017\b': (
        'COCO 2017 is expected as {root}/annotations/instances_train2017.json and '
        'instances_val2017.json, {root}/train2017 and {root}/val2017. Download it '
        '(with its test and unlabeled images),\n'
        '    {download} coco2017 --save-dir {root}\n'
        'or link your copy:\n'
        '    ln -s FOLDER {root}\n'
    ),
}


def describe_missing(folder: str, names: set[str]) -> str | None:
    """Say which files are not in a folder.

    Args:
        folder: The folder. It may be missing, too.
        names: Names of files in the folder, without a path.

    Returns:
        The folder, how many files it lacks, and the first ones; None if it lacks none.
    """
    # Listing the folder once is faster than a query for each file, above all over a
    # network.
    there = os.listdir(folder or '.') if osp.isdir(folder or '.') else ()
    lacking = sorted(names.difference(there))
    if not lacking:
        return None
    counts = f'{len(lacking)} of {len(names)} files'
    return f'{osp.join(folder, "")}: {counts}, {first_names(lacking)}'


def ways_to_get(paths: Iterable[str]) -> str:
    """Say how to get the datasets that missing paths belong to, if they are known."""
    ways = {}
    for path in paths:
        for pattern, text in WAYS.items():
            if match := re.match(pattern, path):
                root = match['root']
                parent = osp.dirname(root) or '.'
                way = text.format(
                    root=root,
                    parent=parent,
                    download=DOWNLOAD,
                    converters=shown_path('tools/dataset_converters'),
                )
                ways[way] = None
                break
    return ''.join(ways)
