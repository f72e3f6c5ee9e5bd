"""Describe the configs in the format of MMDetection's metafiles, for MIM."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from grid import Table
from mmengine.config import Config

from pws_mmdet.version import __version__

ROOT = Path(__file__).resolve().parents[2]
METAFILE = ROOT / 'configs/metafile.yml'
HEADER = """\
# The configs in MMDetection's format, written by tools/paper/make_metafile.py.
#
# All results are published ones, and Source says where. Those in brackets are for other
# options than the config has. Nobody has trained these rows in full with this code yet;
# docs/results has trainings at a small scale.
"""
COLLECTION = {
    'Name': 'PWS',
    'Metadata': {
        'Training Techniques': ['SGD with Momentum', 'Weight Decay'],
        'Architecture': ['Parametric Weights Standardization'],
    },
    'Paper': {
        'URL': 'https://arxiv.org/abs/2103.11590',
        'Title': 'Delving into Variance Transmission and Normalization: Shift of '
        'Average Gradient Makes the Network Collapse',
    },
    'README': 'configs/README.md',
    'Code': {'URL': 'pws_mmdet/layers/pws_conv.py', 'Version': f'v{__version__}'},
}


class Data(NamedTuple):
    trained_on: str
    tested_on: str


# By the last word of a config's name
DATA = {
    'voc': Data('PASCAL VOC 2007 and 2012', 'PASCAL VOC 2007'),
    'cifar10': Data('CIFAR-10', 'CIFAR-10'),
    'in1k': Data('ImageNet-1k', 'ImageNet-1k'),
    'digits': Data("scikit-learn's digits", "scikit-learn's digits"),
    'bccd': Data('BCCD', 'BCCD'),
}
COCO = Data('COCO', 'COCO')
# Tables with published figures
TABLES = ('table1', 'table2', 'table3', 'table4', 'resnet34', 'table5')
# By the name of a figure: its task, and its name in the metafile
FIGURES = {
    'mAP': ('Object Detection', 'mAP'),
    'box AP': ('Object Detection', 'box AP'),
    'mask AP': ('Instance Segmentation', 'mask AP'),
    'error': ('Image Classification', 'top-1 error'),
    'accuracy': ('Image Classification', 'top-1 accuracy'),
}
OPTIONS = {
    'train_dataloader.batch_size': 'batch size',
    'optim_wrapper.optimizer.lr': 'learning rate',
}
AUTHORS = 'https://github.com/lyxzzz/PWSConv'


def make_metafile() -> str:
    """Return the metafile of all configs in ``configs/``."""
    published = defaultdict(list)
    for figure in _published_figures():
        published[figure.config].append(figure)
    models = []
    for path in sorted(METAFILE.parent.rglob('*.py')):
        if path.parent.name != '_base_':
            config = str(path.relative_to(ROOT))
            models.append(_describe(config, published[config]))
    content = {'Collections': [COLLECTION], 'Models': models}
    return HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Indents lists, as MMDetection's metafiles do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


@dataclass(frozen=True)
class _Figure:
    """A published figure of a config, with other values of OPTIONS than it has."""

    config: str
    name: str
    value: float
    options: dict[str, float]
    source: str


def _published_figures() -> Iterator[_Figure]:
    for name in TABLES:
        table = Table(name, 'full')
        for run in table.runs():
            row, column = table.rows[run.row], table.columns[run.column]
            options = {**(column.get('options') or {}), **(row.get('options') or {})}
            if row.get('conv_cfg') or not set(options) <= set(OPTIONS):
                continue
            for figure in filter(FIGURES.get, table.figures):
                value = table.paper(run.row, run.column, figure)
                if value not in (None, 'NaN'):
                    source = f'{table.title.partition(":")[0]} of the paper'
                    if table.is_of_authors(run.row, figure):
                        source = AUTHORS
                    yield _Figure(run.config, figure, float(value), options, source)


def _describe(config: str, published: list[_Figure]) -> dict[str, Any]:
    cfg = Config.fromfile(ROOT / config, import_custom_modules=False)
    name = Path(config).stem
    data = DATA.get(name.removesuffix('_demo').rpartition('_')[2], COCO)
    batch_size = cfg.auto_scale_lr.base_batch_size
    model = {
        'Name': name,
        'In Collection': COLLECTION['Name'],
        'Config': config,
        'Metadata': {
            'Training Data': data.trained_on,
            'Epochs': cfg.train_cfg.max_epochs,
            'Batch Size': batch_size,
        },
    }
    own = (batch_size, cfg.optim_wrapper.optimizer.lr)
    results = _results(published, data.tested_on, dict(zip(OPTIONS, own, strict=True)))
    return {**model, 'Results': results} if results else model


def _results(
    published: list[_Figure], dataset: str, own: dict[str, float]
) -> list[dict[str, Any]]:
    """Return a result for each task. ``own`` has the config's values of OPTIONS."""
    results: dict[str, dict[str, Any]] = {}
    sources = defaultdict(dict)  # without values: keys keep their order
    for figure in published:
        task, metric = FIGURES[figure.name]
        changed = [
            f'({OPTIONS[key]} {value:g})'
            for key, value in figure.options.items()
            if value != own[key]
        ]
        result = results.setdefault(
            task, {'Task': task, 'Dataset': dataset, 'Metrics': {}}
        )
        result['Metrics'][' '.join(['published', metric, *changed])] = figure.value
        sources[task][figure.source] = None
    for task, result in results.items():
        result['Source'] = ', '.join(sources[task])
    return list(results.values())
