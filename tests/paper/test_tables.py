"""The tables of the paper: their grid, their runs, and what is made of the records."""

import collections
import csv
import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import textwrap
import time

import pytest
import yaml
from conftest import ROOT, load_config
from mmdet.registry import MODELS

from pws_mmdet import summarize_model, tables
from pws_mmdet.analysis.layer_kinds import NORM, PWS

GRID = ROOT / 'configs/tables.yml'
NAMES = [name for name in yaml.safe_load(GRID.read_text()) if name[0] != '_']
CLASSIFIERS = {'table4', 'table5', 'textures'}
CONV_OPTIONS = ('gamma', 'relative_gamma', 'scale', 'alpha')


def every_table():
    for name in NAMES:
        for scale in tables.SCALES:
            try:
                yield tables.Table(name, scale, GRID)
            except tables.TableError:
                continue


TABLES = list(every_table())
# by config, as reading one takes longer than all else here
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
        *parents, name = key.split('.')
        part = cfg
        for parent in parents:
            part = part[parent]
        conv_cfg = parents[-1] == 'conv_cfg' and name in CONV_OPTIONS
        assert name in part or conv_cfg, key
    assert cfg.runner_type == 'PWSRunner'  # which stops what diverges


# as the paper says, for all rows of a table but those named
BATCHES = {'table2': 16, 'table3': 4, 'table4': 128, 'table5': 64}
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
        # else the learning rate would be that of another batch
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
        table = tables.Table(name, 'full', GRID)
        for row in table.rows:
            figures = [table.paper(row, column, figure) for column in table.columns]
            expected = of_rows[row].split() if row in of_rows else [None] * len(figures)
            assert figures == expected, (name, row)
        assert set(of_rows) <= set(table.rows)
    table = tables.Table('table3', 'full', GRID)
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
    table = tables.Table('table4', 'full', GRID)
    assert table.paper('pws', 'plain-lr5e-2', 'error') == '6.30'


def test_rows_of_the_ablation():
    runs = {run.row: run for run in tables.Table('table2', 'full', GRID).runs()}
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
    # the paper's row marks neither sqrt(2/n) nor a trained alpha
    arguments = runs['pws-no-scale-fixed-alpha'].arguments()
    for option in ('scale=False', 'alpha=fixed'):
        assert f'model.bbox_head.conv_cfg.{option}' in arguments


@pytest.mark.parametrize('config', ['ssd320_r50_pws_voc', 'ssd320_vgg16_pws_voc'])
def test_ssd_with_pws_has_no_norm_at_all(config):
    model = MODELS.build(load_config(f'configs/voc/{config}.py').model)
    kinds = {layer.kind for layer in summarize_model(model).layers}
    assert PWS in kinds and NORM not in kinds


def test_rows_are_chosen_in_the_order_given():
    table = tables.Table('table1', 'mini', GRID)
    runs = table.runs(['pws-b2', 'normal', '*-b2'], seeds=[3, 4])
    names = [run.name for run in runs]
    assert names[:5] == [
        'pws-b2-s3',
        'normal-b2-s3',
        'normal-b4-s3',
        'normal-b8-s3',
    ] + ['in-b2-s3']
    assert len(names) == len(set(names)) == 2 * (1 + 3 + 5)
    assert 'randomness.seed=4' in runs[-1].arguments()


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['table7'], ['table7', 'table1', 'table5', 'bccd']),
        (['table5', '--scale', 'mini'], ['mini', 'full']),
        (['table1', '--rows', 'pws', 'psw'], ['psw', 'pws-b2', 'normal']),
    ],
)
@pytest.mark.parametrize(
    'program', ['tools/misc/run_table.py', 'tools/analysis_tools/make_table.py']
)
def test_unknown_names_list_those_there_are(
    load_program, program, arguments, words, capsys
):
    if '--rows' in arguments and 'make_table' in program:
        arguments = ['table6']
        words = ['table6', 'table2']
    assert load_program(program).main([*arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_dry_run_needs_nothing(load_program, capsys, tmp_path):
    program = load_program('tools/misc/run_table.py')
    for name, runs in (('table4', 24), ('table5', 6)):
        arguments = [name, '--dry-run', '--data', 'nowhere', '--out', str(tmp_path)]
        assert program.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == runs
        for line in lines:
            assert (ROOT / line.split()[0]).is_file()
            assert line.endswith(': missing')
    assert not list(tmp_path.iterdir())


TRAIN = """
    import json, os, signal, sys, time
    from pathlib import Path

    work_dir = Path(sys.argv[sys.argv.index('--work-dir') + 1])
    assert '--resume' in sys.argv
    mode = os.environ.get('MODE_' + work_dir.name.split('-')[0].upper(), 'finish')
    with open(work_dir / 'attempts', 'a') as file:
        file.write(' '.join(sys.argv) + '\\n')
    if mode == 'hang':
        (work_dir / 'started').touch()
        time.sleep(60)
    if mode == 'fail':
        sys.exit('out of memory')
    if mode == 'half':
        (work_dir / 'epoch_1.pth').touch()
        print('Traceback (most recent call last):')
        print('torch.OutOfMemoryError: out of memory')
        sys.exit('[W0101 00:00:00] something else')
    log = work_dir / time.strftime('%Y%m%d_%H%M%S') / 'vis_data'
    log.mkdir(parents=True, exist_ok=True)
    with open(log / 'scalars.json', 'w') as file:
        for epoch in (1,) if mode == 'unvalidated' else (1, 2):
            step = 10 * epoch
            print(json.dumps(dict(lr=0.1, loss=1.0, step=step)), file=file)
            value = float('nan') if mode == 'nan' else epoch / 10
            values = {'coco/bbox_mAP': value, 'time': 1.0, 'step': epoch}
            print(json.dumps(values), file=file)
        print('{"lr": 0.1, "lo', file=file)
    if mode == 'diverge':
        sys.exit('DivergenceError: Training diverged at iteration 17: loss is nan.')
"""
DIST_TRAIN = """#!/bin/sh
exec "$PYTHON" "$(dirname "$0")/train.py" "$@"
"""
SMALL_CONFIG = """
    data_root = 'data/x/'
    train_dataloader = dict(batch_size=8)
    train_cfg = dict(max_epochs=2)
"""
SMALL_GRID = """
    small:
      title: Small
      head: [Method]
      figures: [AP]
      scales:
        mini:
          config: "configs/{row}.py"
          data: none
          metrics: [{name: AP, key: coco/bbox_mAP, factor: 100}]
      columns:
        b2: {label: batch 2, options: {train_dataloader.batch_size: 2}}
        b4: {label: batch 4}
      rows:
        a: {label: [A], config: a, paper: [10.0, NaN]}
        b: {label: [B], config: b, paper: [20.5, 30.0]}
"""


@pytest.fixture
def root(tmp_path):
    """A project of two configs, whose train program only pretends."""
    root = tmp_path / 'project'
    for path, text in {
        'configs/tables.yml': SMALL_GRID,
        'configs/a.py': SMALL_CONFIG,
        'configs/b.py': SMALL_CONFIG,
        'tools/train.py': TRAIN,
        'tools/dist_train.sh': DIST_TRAIN,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(textwrap.dedent(text))
    (root / 'tools/dist_train.sh').chmod(0o755)
    return root


@pytest.fixture
def run_table(load_program, root, monkeypatch):
    program = load_program('tools/misc/run_table.py')
    monkeypatch.setattr(program, 'ROOT', root)
    out = root / 'out'

    def run(*arguments, code=0):
        assert (
            program.main(['small', '--scale', 'mini', '--out', str(out), *arguments])
            == code
        )
        return {
            path.stem: json.loads(path.read_text())
            for path in sorted(out.glob('small-mini/*.json'))
        }

    run.folder = out / 'small-mini'
    run.program = program
    return run


@pytest.fixture
def make_table(load_program, root, monkeypatch):
    program = load_program('tools/analysis_tools/make_table.py')
    monkeypatch.setattr(program, 'ROOT', root)
    return program


def commands(run_table, name):
    return (run_table.folder / name / 'attempts').read_text().splitlines()


def attempts(run_table, name):
    return len(commands(run_table, name))


def test_records(run_table, monkeypatch, capsys):
    monkeypatch.setenv('MODE_B', 'diverge')
    records = run_table('--jobs', '2')
    assert list(records) == ['a-b2-s0', 'a-b4-s0', 'b-b2-s0', 'b-b4-s0']
    record = records['a-b2-s0']
    assert record['config'] == 'configs/a.py'
    assert record['options'] == {'train_dataloader.batch_size': 2, 'randomness.seed': 0}
    assert (record['seed'], record['label']) == (0, 'A, batch 2')
    assert record['outcome'] == 'finished'
    assert record['metrics']['coco/bbox_mAP'] == 0.2
    assert record['curve'] == [
        {'epoch': 1, 'step': 10, 'coco/bbox_mAP': 0.1},
        {'epoch': 2, 'step': 20, 'coco/bbox_mAP': 0.2},
    ]
    assert {'pws_mmdet', 'torch', 'mmdet', 'python'} <= set(record['versions'])
    assert record['hardware']['cores'] >= 1 and record['hardware']['jobs'] == 2
    assert record['revision'] and record['date'] and record['minutes'] >= 0
    assert record['batch_size'] == 2 and records['a-b4-s0']['batch_size'] == 8
    assert 'attempts' not in record and record['data'] is None
    diverged = records['b-b2-s0']
    assert diverged['outcome'] == 'diverged at iteration 17'
    assert diverged['metrics'] == {} and len(diverged['curve']) == 2
    out = capsys.readouterr().out
    assert '4 runs, 0 of them done' in out and 'AP 20.0' in out
    assert '[4/4]' in out and '; 3 left, about' in out


def test_what_is_done_is_not_repeated(run_table, monkeypatch):
    monkeypatch.setenv('MODE_A', 'fail')
    monkeypatch.setenv('MODE_B', 'diverge')
    records = run_table(code=1)  # one that fails does not stop the others
    assert records['a-b2-s0']['outcome'] == 'failed with exit status 1: out of memory'
    assert records['b-b2-s0']['outcome'].startswith('diverged')
    monkeypatch.setenv('MODE_A', 'finish')
    half = run_table.folder / 'b-b4-s0.json'
    half.write_text(half.read_text()[:100])
    records = run_table()
    assert records['a-b2-s0']['outcome'] == 'finished'
    assert records['b-b4-s0']['outcome'].startswith('diverged')
    count = [attempts(run_table, name) for name in records]
    assert count == [2, 2, 1, 2]
    run_table()
    assert [attempts(run_table, name) for name in records] == count


def test_interrupted_trainings_end_and_go_on(run_table, root, tmp_path):
    script = tmp_path / 'program.py'
    script.write_text(
        f'import sys\nsys.path.insert(0, {str(ROOT / "tools/misc")!r})\n'
        'import pathlib, run_table\n'
        f'run_table.ROOT = pathlib.Path({str(root)!r})\n'
        'sys.exit(run_table.main(sys.argv[1:]))\n'
    )
    folder = run_table.folder
    command = ['small', '--scale', 'mini', '--jobs', '2', '--out', str(folder.parent)]
    program = subprocess.Popen(
        [sys.executable, str(script), *command],
        env={**os.environ, 'MODE_A': 'hang', 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = [folder / name / 'started' for name in ('a-b2-s0', 'a-b4-s0')]
    deadline = time.time() + 300
    while not all(path.exists() for path in started) and time.time() < deadline:
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    out, _ = program.communicate(timeout=30)
    assert program.returncode == 130, out
    assert 'goes on from here' in out
    assert not list(folder.glob('*.json')), 'an interrupted run has no record'
    assert not (folder / 'b-b2-s0').exists(), 'none is begun after the interruption'
    # they have ended, or else they would hold the lock
    assert all(r['outcome'] == 'finished' for r in run_table().values())


def test_a_run_is_trained_by_one_process_at_a_time(run_table, capsys):
    folder = run_table.folder / 'a-b2-s0'
    folder.mkdir(parents=True)
    with open(folder / 'console.log', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        records = run_table('--rows', 'a')
    assert list(records) == ['a-b4-s0']
    assert 'a-b2-s0: is being trained by another process' in capsys.readouterr().out


def test_data_is_checked_before_the_first_run(run_table, root, capsys):
    (root / 'configs/b.py').write_text(
        "data_root = 'data/x/'\n"
        'train_cfg = dict(max_epochs=2)\n'
        "train_dataloader = dict(batch_size=8, dataset=dict(type='CocoDataset', "
        "data_root=data_root, ann_file='a.json', data_prefix=dict(img='images/')))\n"
        "val_evaluator = [dict(type='CocoMetric', ann_file=data_root + 'v.json')]\n"
    )
    records = run_table('--data', str(root / 'elsewhere'), code=2)
    assert not records and not run_table.folder.exists()
    message = capsys.readouterr().err
    for name in ('a.json', 'images', 'v.json'):
        assert str(root / 'elsewhere' / name) in message
    assert '--data FOLDER' in message and '--cfg-options' not in message


def test_data_of_a_run(run_table, root):
    """A row may have data of its own; --data goes before it."""
    path = root / 'configs/tables.yml'
    option = 'train_dataloader.dataset.data_root'
    path.write_text(
        path.read_text().replace(
            'config: b,', f'config: b, options: {{{option}: data/other}},'
        )
    )
    (root / 'configs/b.py').write_text(
        "data_root = 'data/x'\n"
        'train_cfg = dict(max_epochs=2)\n'
        "train_dataloader = dict(batch_size=8, dataset=dict(type='CustomDataset', "
        "data_root=data_root, data_prefix='train'))\n"
    )
    run_table('--rows', 'b', code=2)
    folder = root / 'elsewhere'
    (folder / 'train/0').mkdir(parents=True)
    record = run_table('--rows', 'b-b2', '--data', str(folder))['b-b2-s0']
    assert record['data'] == str(folder)
    (command,) = commands(run_table, 'b-b2-s0')
    assert f'{option}={folder}' in command.replace('/ ', ' ')
    assert 'data/other' not in command


def test_processes_share_the_batch(run_table, capsys):
    run_table('--gpus', '3', code=2)
    assert 'cannot share the batch of a-b2, which is 2' in capsys.readouterr().err
    assert not run_table.folder.exists()
    records = run_table('--rows', 'a', '--gpus', '2')
    for name, batch in (('a-b2-s0', 2), ('a-b4-s0', 8)):
        assert records[name]['batch_size'] == batch
        assert records[name]['hardware']['processes'] == 2
        (command,) = commands(run_table, name)
        options = [w for w in command.split() if w.startswith('train_dataloader')]
        assert options == [f'train_dataloader.batch_size={batch // 2}']


def test_threads_are_those_of_the_training(run_table, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    records = run_table('--rows', 'a-b2')
    assert records['a-b2-s0']['hardware']['threads'] == 3
    monkeypatch.delenv('OMP_NUM_THREADS')
    cores = len(os.sched_getaffinity(0))
    records = run_table('--rows', 'a-b4', '--gpus', '2')
    assert records['a-b4-s0']['hardware']['threads'] == max(1, cores // 2)


def test_who_trained_what_is_left(run_table, monkeypatch):
    """An attempt that left no checkpoint has no part in the result."""
    describe = run_table.program.describe_environment
    for revision, mode in (('a', 'half'), ('b', 'fail'), ('c', 'finish')):
        monkeypatch.setenv('MODE_A', mode)
        environment = dict(describe(), revision=revision)
        monkeypatch.setattr(
            run_table.program, 'describe_environment', lambda e=environment: e
        )
        record = run_table('--rows', 'a-b2', code=mode != 'finish')['a-b2-s0']
        assert record['revision'] == revision
    assert [attempt['revision'] for attempt in record['attempts']] == ['a', 'c']
    assert record['outcome'] == 'finished'


def test_failures_of_all_kinds(run_table, monkeypatch, capsys):
    monkeypatch.setenv('MODE_A', 'half')
    monkeypatch.setenv('MODE_B', 'unvalidated')
    run_table.folder.mkdir(parents=True)
    (run_table.folder / 'a-b2-s0').write_text('no folder')  # the program itself fails
    records = run_table(code=1)
    assert list(records) == ['a-b4-s0', 'b-b2-s0', 'b-b4-s0']
    outcomes = [record['outcome'] for record in records.values()]
    assert 'a-b2-s0: failed: FileExistsError' in capsys.readouterr().out
    assert outcomes[0].startswith('failed with exit status 1: torch.OutOfMemoryError: ')
    assert outcomes[1] == 'failed: no validation of the last epoch'
    monkeypatch.setenv('MODE_B', 'nan')
    records = run_table('--rows', 'b-b2')
    assert records['b-b2-s0']['outcome'] == 'finished'
    assert 'AP NaN' in capsys.readouterr().out


@pytest.mark.parametrize(
    'log, reason',
    [
        ('', 'no output'),
        ('a\nusage: train.py\n\n', 'usage: train.py'),
        (
            'ValueError: an old one\n\nDuring handling of the above\n\n'
            'Traceback (most recent call last):\n  File "x", line 1\n'
            'FileNotFoundError: The data is not there. Missing:\n    a  (b)\n'
            '\nsome hint\nat the end\n',
            'FileNotFoundError: The data is not there. Missing: a (b)',
        ),
        (
            '[rank1]: Traceback (most recent call last):\n'
            '[rank1]:   File "x", line 1\n'
            '[rank1]: torch.OutOfMemoryError: CUDA out of memory.\n'
            'E0101 00:00:00.000 1 torch/distributed] failed (exitcode: 1)\n'
            'Traceback (most recent call last):\n'
            'torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n'
            '=====\nFailures:\n  <NO_OTHER_FAILURES>\n=====\n',
            'torch.OutOfMemoryError: CUDA out of memory.',
        ),
        ('Traceback\nKeyboardInterrupt\n', 'KeyboardInterrupt'),
    ],
)
def test_reason_of_a_failure(load_program, log, reason):
    program = load_program('tools/misc/run_table.py')
    assert program.find_reason(log) == reason
    assert len(program.find_reason('RuntimeError: ' + 'word ' * 200)) <= 300


def test_dry_run_may_be_cut_short():
    """As by `| head`."""
    command = [sys.executable, 'tools/misc/run_table.py', 'table1', '--dry-run']
    program = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    program.stdout.close()
    message = program.stderr.read()
    assert program.wait() == 0
    assert 'BrokenPipe' not in message


def test_find_data(load_program):
    program = load_program('tools/misc/run_table.py')
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.merge_from_dict(dict(program.find_data(cfg, '/d')))
    assert cfg.train_dataloader.dataset.data_root == '/d/'
    assert cfg.val_evaluator[0].ann_file == '/d/annotations/instances_val2017.json'
    cfg = load_config('configs/voc/ssd320_vgg16_pws_voc.py')
    cfg.merge_from_dict(dict(program.find_data(cfg, '/d')))
    roots = {d.data_root for d in cfg.train_dataloader.dataset.datasets}
    assert roots == {'/d/'}


def record(row, column, seed, value, **kwargs):
    return {
        'run': f'{row}-{column}-s{seed}',
        'row': row,
        'column': column,
        'seed': seed,
        'outcome': 'finished',
        'metrics': {} if value is None else {'coco/bbox_mAP': value},
        'date': '2026-11-22',
        'revision': 'aaaa',
        'versions': {'torch': '2.13.0'},
        'hardware': dict(cpu='CPU', cores=2, gpu=None, threads=1, processes=1, jobs=2),
        **kwargs,
    }


def write(folder, *records):
    for r in records:
        tables.write_record(folder / 'small-mini' / f'{r["run"]}.json', r)


def test_table_of_records(make_table, tmp_path, capsys):
    write(
        tmp_path,
        record('a', 'b2', 0, 0.1),
        record('a', 'b2', 1, 0.2),
        record('a', 'b2', 2, 0.9, outcome='diverged at iteration 3'),
        record('a', 'b4', 0, None, outcome='diverged at iteration 5'),
        record('b', 'b2', 0, None, date='2026-11-24'),
        record('b', 'b4', 0, 0.4, outcome='failed with exit status 1: x'),
    )
    (tmp_path / 'small-mini/b-b4-s1.json').write_text('{"run": "b-b4')
    files = [tmp_path / 'table.md', tmp_path / 'table.csv']
    options = zip(('--markdown', '--csv'), map(str, files), strict=True)
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    assert make_table.main(arguments + [x for pair in options for x in pair]) == 0
    assert 'b-b4-s1.json is only half written' in capsys.readouterr().err

    with open(files[1], newline='') as file:
        rows = list(csv.reader(file))
    heading = ['Method', 'batch 2, AP, paper', 'batch 2, AP']
    assert rows[0] == [*heading, 'batch 4, AP, paper', 'batch 4, AP']
    assert rows[1] == ['A', '10.0', '15.0 ± 7.1 (1 of 3 NaN)', 'NaN', 'NaN']
    # nothing detected is an AP of 0; a run that failed has no figure
    assert rows[2] == ['B', '20.5', '0.0', '30.0', '']
    markdown = files[0].read_text()
    assert all('| ' + ' | '.join(row) + ' |' in markdown for row in rows)
    for words in (
        'run_table.py small --scale mini --rows a-b2 --seeds 1 2`',
        'CPU, 1 of 2 cores a run',
        '2026-11-22 to 2026-11-24',
        'torch 2.13.0',
        'a-b4-s0 diverged at iteration 5',
        'b-b2-s0 detected nothing',
        'Revisions of the code, others than this one: aaaa (6 runs); a "+"',
    ):
        assert words in markdown, words


def printed(make_table, folder, capsys):
    assert make_table.main(['small', '--scale', 'mini', '--records', str(folder)]) == 0
    return capsys.readouterr().out


def test_other_revisions_are_named_as_such(make_table, tmp_path, capsys, monkeypatch):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    monkeypatch.setattr(tables, 'revision', lambda root: 'aaaa')
    out = printed(make_table, tmp_path, capsys)
    assert 'Revisions of the code: aaaa (1 run); a "+"' in out
    pair = [record('b', 'b2', 0, 0.1, revision=revision) for revision in ('aaaa', 'bb')]
    write(
        tmp_path,
        record('a', 'b4', 0, 0.1, revision='bb'),
        dict(pair[1], attempts=[*pair, pair[0]]),
    )
    out = printed(make_table, tmp_path, capsys)
    assert (
        'Revisions of the code: aaaa (1 run); others than this one: '
        'bb (1 run), aaaa then bb (1 run); a "+"'
    ) in out


def test_commands_make_these_runs_and_no_others(make_table, tmp_path, capsys):
    program = 'python tools/misc/run_table.py small --scale mini'
    cells = [(row, column) for row in 'ab' for column in ('b2', 'b4')]
    write(tmp_path, *(record(*cell, 0, 0.1) for cell in cells))
    out = printed(make_table, tmp_path, capsys)
    assert f'* `{program}`\n* Seeds' in out
    some = [('a', 'b2'), ('b', 'b2'), ('b', 'b4')]
    write(tmp_path, *(record(*cell, seed, 0.1) for cell in some for seed in (1, 2)))
    out = printed(make_table, tmp_path, capsys)
    expected = (
        f'* `{program}`\n* `{program} --rows a-b2 b --seeds 1 2`\n* Seeds: 0, 1, 2.'
    )
    assert expected in out
    lines = re.findall(r'`python \S+ small --scale mini(.*)`', out)
    runs = []
    for line in lines:
        words = (line if '--seeds' in line else f'{line} --seeds 0').split()
        at = words.index('--seeds')
        runs += tables.Table(
            'small', 'mini', make_table.ROOT / 'configs/tables.yml'
        ).runs(words[1:at] or None, [int(seed) for seed in words[at + 1 :]])
    written = {path.stem for path in tmp_path.glob('small-mini/*.json')}
    assert {run.name for run in runs} == written and len(runs) == len(written)


def test_a_figure_that_is_not_finite_is_none(make_table, tmp_path, capsys):
    write(tmp_path, record('a', 'b2', 0, math.nan), record('b', 'b2', 0, 0.5))
    write(tmp_path, record('b', 'b2', 1, math.inf))
    out = printed(make_table, tmp_path, capsys)
    assert '| A | 10.0 | NaN | NaN |  |' in out
    assert '| B | 20.5 | 50.0 (1 of 2 NaN) | 30.0 |  |' in out
    assert 'a-b2-s0 finished with a figure that is not finite' in out


def test_figures_of_the_authors_are_marked(make_table, root, tmp_path, capsys):
    grid = root / 'configs/tables.yml'
    text = grid.read_text().replace('{label: [A],', '{label: [A], authors: true,')
    grid.write_text(text.replace('20.5', 'null'))
    sheet = tmp_path / 'table.csv'
    folder = tmp_path / 'records'
    folder.mkdir()
    arguments = ['small', '--scale', 'mini', '--records', str(folder)]
    assert make_table.main([*arguments, '--csv', str(sheet)]) == 0
    out = capsys.readouterr().out
    assert '| A | 10.0 ¹ |  | NaN ¹ |  |\n| B |  |  | 30.0 |  |\n\n¹ From' in out
    with open(sheet, newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "figures of the authors' repository"
    assert rows[1:] == [
        ['A', '10.0', '', 'NaN', '', 'AP'],
        ['B', '', '', '30.0', '', ''],
    ]
    # a figure instead of rows
    text = text.replace('authors: true, ', '').replace(
        'figures:', 'authors: [AP]\n  figures:'
    )
    grid.write_text(text)
    out = printed(make_table, folder, capsys)
    assert '| A | 10.0 ¹ |  | NaN ¹ |  |\n| B | 20.5 ¹ |  | 30.0 ¹ |  |' in out


@pytest.mark.parametrize('option', ['--csv', '--markdown'])
def test_a_folder_is_no_file(make_table, tmp_path, capsys, option):
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    assert make_table.main([*arguments, option, str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith('make_table.py: ') and str(tmp_path) in message
    assert message.count('\n') == 1


WHOLE = record('a', 'b2', 0, 0.1)


def test_a_whole_record_is_read(tmp_path):
    path = tmp_path / 'a.json'
    for whole in (WHOLE, dict(WHOLE, attempts=[WHOLE, WHOLE])):
        tables.write_record(path, whole)
        assert tables.read_record(path) == whole


@pytest.mark.parametrize(
    'spoilt',
    [
        *({k: v for k, v in WHOLE.items() if k != key} for key in WHOLE),
        dict(WHOLE, metrics=[0.1]),
        dict(WHOLE, metrics={'coco/bbox_mAP': 'high'}),
        dict(WHOLE, outcome=None),
        dict(WHOLE, seed='0'),
        dict(WHOLE, hardware={}),
        dict(WHOLE, attempts=[]),
        dict(WHOLE, attempts=[{}]),
        dict(WHOLE, attempts=0),
        [WHOLE],
    ],
    ids=str,
)
def test_a_record_that_lacks_anything_is_half_written(tmp_path, spoilt):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(spoilt))
    assert tables.read_record(path) is None


def test_a_table_goes_to_its_place_in_a_page(make_table, tmp_path, capsys):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    page = tmp_path / 'page.md'
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    arguments += ['--markdown', str(page)]
    page.write_text('Before.\n')
    assert make_table.main(arguments) == 2
    assert '<!-- small-mini -->' in capsys.readouterr().err
    page.write_text('Before.\n<!-- small-mini -->\nold\n<!-- /small-mini -->\nAfter.\n')
    for _ in range(2):
        assert make_table.main(arguments) == 0
        text = page.read_text()
        assert text.startswith('Before.\n<!-- small-mini -->\n**Small**')
        assert text.endswith('\n<!-- /small-mini -->\nAfter.\n')
        assert text.count('| A |') == 1 and 'old' not in text


RESULTS = ROOT / 'docs/results'
PUBLISHED = sorted(path.name for path in RESULTS.glob('records/*'))


def lines_of(page):
    """Without what depends on the commit that is looked at."""
    lines = page.read_text().splitlines()
    return [line for line in lines if not line.startswith('* Revisions of the code')]


@pytest.mark.parametrize('folder', PUBLISHED)
def test_published_tables_are_those_of_the_records(load_program, folder, tmp_path):
    name, scale = folder.split('-')
    program = load_program('tools/analysis_tools/make_table.py')
    mark = f'<!-- {folder} -->'
    (published,) = (p for p in RESULTS.glob('*.md') if mark in p.read_text())
    page = tmp_path / 'page.md'
    page.write_text(published.read_text())
    sheet = tmp_path / 'table.csv'
    arguments = [name, '--scale', scale, '--records', str(RESULTS / 'records')]
    arguments += ['--markdown', str(page), '--csv', str(sheet)]
    assert program.main(arguments) == 0
    assert lines_of(page) == lines_of(published)
    assert sheet.read_text() == (RESULTS / f'{folder}.csv').read_text()


def measured(table, row, key, column=''):
    """A figure in % as the README prints it: the mean over the seeds."""
    values = []
    for path in RESULTS.glob(f'records/{table}-mini/*.json'):
        record = json.loads(path.read_text())
        if (record['row'], record['column']) == (row, column):
            values.append(100 * record['metrics'][key])
    return f'{statistics.mean(values):.1f}'


def readme_tables():
    """The tables of the README as lists of rows, which are lists of cells."""
    found = [[]]
    for line in (ROOT / 'README.md').read_text().splitlines():
        if line.startswith('|'):
            found[-1].append([cell.strip() for cell in line.strip('|').split('|')])
        elif found[-1]:
            found.append([])
    return found


def test_readme_reproduces_what_was_measured():
    """Beside each config of Table 3 its small one, of Table 2 for SSD."""
    of_config = {
        run.config.split('/')[-1][:-3]: run.row
        for run in tables.Table('table3', 'full', GRID).runs()
    }
    (table,) = [t for t in readme_tables() if t and t[0][0] == 'config']
    at = [
        i
        for i, head in enumerate(table[0])
        if head.split(',')[1:2] == [' reproduced here']
    ]
    shown, expected = {}, {}
    for cells in table[2:]:
        config = re.match(r'\[(\w+)\]', cells[0])[1]
        row = of_config[config]
        shown[config] = [cells[i] for i in at]
        if row in ('ssd-bn', 'ssd-pws'):
            method = row.removeprefix('ssd-')
            expected[config] = [measured('table2', method, 'coco/bbox_mAP'), '']
        elif row.startswith('ssd-'):
            expected[config] = ['', '']
        else:
            keys = ('coco/bbox_mAP', 'coco/segm_mAP')
            expected[config] = [measured('table3', row, key) for key in keys]
    assert len(shown) == 9
    assert shown == expected


def test_readme_shows_the_small_table_of_batches():
    (table,) = [t for t in readme_tables() if t and 'PWS' in t[0] and 'IN' in t[0]]
    assert [cells[0] for cells in table[2:]] == ['batch 2', 'batch 4', 'batch 8']
    for cells in table[2:]:
        for method, cell in zip(table[0][1:], cells[1:], strict=True):
            column = cells[0].replace('batch ', 'b')
            key = 'coco/bbox_mAP_50'
            assert cell == measured('table1', method.lower(), key, column), cells[0]


def test_no_records(make_table, tmp_path, capsys):
    arguments = ['small', '--scale', 'mini', '--records']
    assert make_table.main([*arguments, str(tmp_path)]) == 0
    assert 'No run has a record yet' in capsys.readouterr().out
    assert make_table.main([*arguments, str(tmp_path / 'none')]) == 2
    assert 'run_table.py makes it' in capsys.readouterr().err


def test_revision(tmp_path):
    assert tables.revision(tmp_path) == 'unknown'
    git = ['git', '-C', tmp_path, '-c', 'user.name=x', '-c', 'user.email=x@x.x']
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/a.py').write_text('')
    subprocess.run([*git, 'init', '-q'], check=True)
    subprocess.run([*git, 'add', '.'], check=True)
    subprocess.run([*git, 'commit', '-qm', 'a'], check=True)
    clean = tables.revision(tmp_path)
    assert len(clean) == 10
    (tmp_path / 'notes').write_text('no code')
    assert tables.revision(tmp_path) == clean
    (tmp_path / 'configs/a.py').write_text('x = 1')
    assert tables.revision(tmp_path) == clean + '+'
