"""The grid of the paper's tables: its trainings and the paper's figures."""

import collections
import re

import pytest
import yaml
from conftest import load_config
from grid import GRID, SCALES, Table, TableError
from mmdet.registry import MODELS

from pws_mmdet import summarize_model
from pws_mmdet.analysis.layer_kinds import NORM, PWS

NAMES = [name for name in yaml.safe_load(GRID.read_text()) if name[0] != '_']
CLASSIFIERS = {'table4', 'table5', 'textures', 'resnet34'}
CONV_OPTIONS = ('gamma', 'relative_gamma', 'scale', 'alpha')
# What a config may lack, because it has a default. Other tests build these.
OPTIONAL = r"""
    default_hooks\.alpha_init\.type |
    optim_wrapper\.(type | (agc | clip_grad | paramwise_cfg)\..+) |
    model\..+\.(conv_cfg\.type | norm_cfg | norm_cfg\.(type | num_groups))
"""


def every_table():
    for name in NAMES:
        for scale in SCALES:
            try:
                yield Table(name, scale)
            except TableError:
                continue


TABLES = list(every_table())
# By config: reading a config takes longer than everything else here.
RUNS = collections.defaultdict(list)
for run in (run for table in TABLES for run in table.runs()):
    RUNS[run.config].append(run)


def test_scales():
    has = {(t.name, t.scale) for t in TABLES}
    assert {(f'table{i}', 'full') for i in range(1, 6)} <= has
    assert {(f'table{i}', 'mini') for i in range(1, 5)} | {('bccd', 'mini')} <= has


@pytest.mark.parametrize('config', RUNS)
def test_options_reach_what_the_config_has(config):
    """A misspelt option would silently train another row of the table."""
    if CLASSIFIERS & {run.table for run in RUNS[config]}:
        pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    cfg = load_config(config)
    for key in {key for run in RUNS[config] for key in run.options}:
        if re.fullmatch(OPTIONAL, key, re.VERBOSE):
            continue
        *parents, name = key.split('.')
        part = cfg
        for parent in parents:
            part = part[int(parent) if parent.isdigit() else parent]
        conv_cfg = parents[-1] == 'conv_cfg' and name in CONV_OPTIONS
        assert name in part or conv_cfg, key
    assert cfg.runner_type == 'PWSRunner'  # stops a training that diverges


# The paper's batch of each table, column and row. The last one that fits counts.
BATCHES = {'table2': 16, 'table3': 4, 'table4': 128, 'table5': 64}
BATCHES['resnet34'] = 128
BATCHES |= {f'table1-b{batch}': batch for batch in (2, 4, 8)}
BATCHES |= {f'table3-ssd-{row}': 16 for row in ('bn', 'pws', 'bn-2x', 'pws-2x')}
FULL = [table for table in TABLES if table.scale == 'full']


@pytest.mark.parametrize('table', FULL, ids=lambda table: table.name)
def test_batches_of_the_paper(table):
    if table.name in CLASSIFIERS:
        pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    for run in table.runs():
        cfg = load_config(run.config)
        cfg.merge_from_dict(run.options)
        keys = (run.table, f'{run.table}-{run.column}', f'{run.table}-{run.row}')
        batch = [BATCHES[key] for key in keys if key in BATCHES][-1]
        assert cfg.train_dataloader.batch_size == batch, run.cell
        # Otherwise the learning rate would be that of another batch.
        base = cfg.auto_scale_lr.base_batch_size
        assert base == batch or run.table == 'table1' or '--auto-scale-lr' in run.flags


@pytest.mark.parametrize('table', TABLES, ids=lambda t: f'{t.name}-{t.scale}')
def test_the_papers_figures_are_complete(table):
    names = [run.name for run in table.runs()]
    assert len(set(names)) == len(names)
    for name, row in table.rows.items():
        assert len(row['label']) <= len(table.head)
        assert 'paper' not in row or len(row['paper']) == len(table.columns), name
    for metric in table.metrics:
        assert metric.beside is None or metric.beside in ('mAP',)


PAPER = {
    'table1': (
        'mAP',
        {
            'in': '71.43 72.69 72.97',
            'bn': '72.97 75.18 76.74',
            'gn': '75.08 75.26 75.13',
            'sn': '76.29 76.53 76.86',
            'wn': 'NaN 76.70 77.06',
            'pws': '76.93 77.11 77.66',
        },
    ),
    'table2': (
        'mAP',
        {
            'normal-lr1e-3': '68.68',
            'bn-lr1e-3': '72.80',
            'sn-lr1e-3': '71.70',
            'pws-lr1e-3-gamma1e-5': '72.99',
            'pws-lr1e-3-gamma1e-3': '70.32',
            'resnet-bn': '75.83',
            'resnet-pws': '77.19',
            'bn': '77.00',
            'pws-no-scale-fixed-alpha': 'NaN',
            'pws-fixed-alpha': '74.96',
            'pws': '77.52',
            'pws-gamma1e-4': '76.50',
            'pws-gamma1e-5': 'NaN',
        },
    ),
    'table5': (
        'error',
        dict(bn='23.6', gn='24.3', ln='25.3', **{'in': '28.4'}, wn='28.2', pws='24.0'),
    ),
}


def test_figures_of_the_paper():
    for name, (figure, of_rows) in PAPER.items():
        table = Table(name, 'full')
        for row in table.rows:
            figures = [table.paper(row, column, figure) for column in table.columns]
            expected = of_rows[row].split() if row in of_rows else [None] * len(figures)
            assert figures == expected, (name, row)
        assert set(of_rows) <= set(table.rows)
    table = Table('table3', 'full')
    assert table.paper('4conv-pws', '', 'box AP') == '39.5'
    assert table.paper('4conv-pws', '', 'box AP50') is None
    assert table.paper('ssd-pws', '', 'mask AP') is None
    authors = {
        (row, figure)
        for row in table.rows
        for figure in table.figures
        if table.paper(row, '', figure) and table.is_of_authors(row, figure)
    }
    assert authors == {
        *((row, 'mask AP') for row in ('bn', 'gn', 'pws', '4conv-gn', '4conv-pws')),
        *((row, 'box AP') for row in ('4conv-gn', '4conv-pws')),
    }
    table = Table('table4', 'full')
    assert table.paper('pws', 'plain-lr5e-2', 'error') == '6.30'
    table = Table('resnet34', 'full')
    figures = {row: table.paper(row, '', 'accuracy') for row in table.rows}
    assert figures == {'bn': '95.3', 'gn': '94.2', 'pws': '95.1', 'pws-relative': None}
    assert all(table.is_of_authors(row, 'accuracy') for row in figures)


def test_cifar10_on_a_cpu():
    """A tenth of the epochs, with steps at the same parts of them."""
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    for name in ('table4', 'resnet34'):
        table, whole = Table(name, 'cifar'), Table(name, 'full')
        assert table.rows.keys() == whole.rows.keys()
        for run, long in zip(table.runs(), whole.runs(), strict=True):
            short_cfg, long_cfg = (load_config(r.config) for r in (run, long))
            short_cfg.merge_from_dict(run.options)
            long_cfg.merge_from_dict(long.options)
            assert run.cell == long.cell
            assert short_cfg.train_cfg.max_epochs == 20
            assert long_cfg.train_cfg.max_epochs == 200
            (steps,), (all_steps,) = short_cfg.param_scheduler, long_cfg.param_scheduler
            assert [10 * step for step in steps.milestones] == all_steps.milestones
            assert short_cfg.train_dataloader == long_cfg.train_dataloader
            assert short_cfg.optim_wrapper == long_cfg.optim_wrapper
            for interval in (
                'train_cfg.val_interval',
                'default_hooks.checkpoint.interval',
            ):
                assert 20 % run.options[interval] == 0
    rows = list(Table('table4', 'cifar').rows)
    assert rows[:7] == ['normal', 'normal-clip', 'normal-agc', 'bn', 'gn', 'sn', 'wn']
    assert rows[7:12] == ['convws-gn', 'nf', 'pws', 'pws-gamma1e-6', 'dyt']


def test_rows_of_the_ablation():
    runs = {run.row: run for run in Table('table2', 'full').runs()}
    gamma = 'model.{}.conv_cfg.gamma'
    parts = ('backbone', 'neck', 'bbox_head')
    assert runs['pws-gamma1e-5'].options == {gamma.format(p): 1e-5 for p in parts}
    assert runs['pws-lr1e-3-gamma1e-5'].options == {
        'optim_wrapper.optimizer.lr': 1e-3,
        **{gamma.format(p): 1e-5 for p in parts},
    }
    arguments = runs['pws-no-scale'].arguments()
    assert arguments[0] == 'configs/voc/ssd320_vgg16_pws_voc.py'
    assert 'model.neck.conv_cfg.scale=False' in arguments
    assert not [argument for argument in arguments if 'alpha' in argument]
    # This row of the paper has neither sqrt(2/n) nor a trained alpha.
    arguments = runs['pws-no-scale-fixed-alpha'].arguments()
    for option in ('scale=False', 'alpha=fixed'):
        assert f'model.bbox_head.conv_cfg.{option}' in arguments


@pytest.mark.parametrize('config', ['ssd320_r50_pws_voc', 'ssd320_vgg16_pws_voc'])
def test_ssd_with_pws_has_no_norm_at_all(config):
    model = MODELS.build(load_config(f'configs/voc/{config}.py').model)
    kinds = {layer.kind for layer in summarize_model(model).layers}
    assert PWS in kinds and NORM not in kinds


def test_rows_are_chosen_in_the_order_given():
    table = Table('table1', 'mini')
    runs = table.runs(['pws-b2', 'normal', '*-b2'], seeds=[3, 4])
    names = [run.name for run in runs]
    assert names[:5] == [
        'pws-b2-s3',
        'normal-b2-s3',
        'normal-b4-s3',
        'normal-b8-s3',
    ] + ['in-b2-s3']
    assert len(names) == len(set(names)) == 2 * (1 + 3 + len(table.rows) - 2)
    assert 'randomness.seed=4' in runs[-1].arguments()
