"""The tables of the paper: their grid, their runs, and what is made of the records."""

import collections
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml
from conftest import ROOT, load_config

from pws_mmdet import tables

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


@pytest.mark.parametrize('table', TABLES, ids=lambda t: f'{t.name}-{t.scale}')
def test_the_papers_figures_are_complete(table):
    names = [run.name for run in table.runs()]
    assert len(set(names)) == len(names)
    for name, row in table.rows.items():
        assert len(row['label']) <= len(table.head)
        assert 'paper' not in row or len(row['paper']) == len(table.columns), name
    for metric in table.metrics:
        assert metric.beside is None or metric.beside in ('mAP',)


def test_figures_of_the_paper():
    table = tables.Table('table1', 'full', GRID)
    assert table.paper('pws', 'b2', 'mAP') == '76.93'
    assert table.paper('wn', 'b2', 'mAP') == 'NaN'
    assert table.paper('wn', 'b4', 'mAP') == '76.70'
    assert table.paper('normal', 'b2', 'mAP') is None
    table = tables.Table('table3', 'full', GRID)
    assert table.paper('4conv-pws', '', 'box AP') == '39.5'
    assert table.paper('4conv-pws', '', 'box AP50') is None
    assert table.paper('ssd-pws', '', 'mask AP') is None
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
    log = work_dir / time.strftime('%Y%m%d_%H%M%S') / 'vis_data'
    log.mkdir(parents=True, exist_ok=True)
    with open(log / 'scalars.json', 'w') as file:
        for epoch in (1, 2):
            step = 10 * epoch
            print(json.dumps(dict(lr=0.1, loss=1.0, step=step)), file=file)
            values = {'coco/bbox_mAP': epoch / 10, 'time': 1.0, 'step': epoch}
            print(json.dumps(values), file=file)
        print('{"lr": 0.1, "lo', file=file)
    if mode == 'diverge':
        sys.exit('DivergenceError: Training diverged at iteration 17: loss is nan.')
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
        'configs/a.py': "data_root = 'data/x/'\ntrain_dataloader = dict(batch_size=1)",
        'configs/b.py': "data_root = 'data/x/'\ntrain_dataloader = dict(batch_size=1)",
        'tools/train.py': TRAIN,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(textwrap.dedent(text))
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


def attempts(run_table, name):
    return len((run_table.folder / name / 'attempts').read_text().splitlines())


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
        "train_dataloader = dict(dataset=dict(type='CocoDataset', "
        "data_root=data_root, ann_file='a.json', data_prefix=dict(img='pictures/')))\n"
        "val_evaluator = [dict(type='CocoMetric', ann_file=data_root + 'v.json')]\n"
    )
    records = run_table('--data', str(root / 'elsewhere'), code=2)
    assert not records and not run_table.folder.exists()
    message = capsys.readouterr().err
    for name in ('a.json', 'pictures', 'v.json'):
        assert str(root / 'elsewhere' / name) in message


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
        'run_table.py small --scale mini --seeds 0 1 2',
        'CPU, 1 of 2 cores a run',
        '2026-11-22 to 2026-11-24',
        'torch 2.13.0',
        'a-b4-s0 diverged at iteration 5',
        'b-b2-s0 detected nothing',
        'Revisions of the code, others than this one: aaaa (6 runs)',
    ):
        assert words in markdown, words


def test_an_own_revision_goes_without_saying(make_table, tmp_path, capsys, monkeypatch):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    monkeypatch.setattr(tables, 'revision', lambda root: 'aaaa')
    assert (
        make_table.main(['small', '--scale', 'mini', '--records', str(tmp_path)]) == 0
    )
    out = capsys.readouterr().out
    assert 'Revisions of the code: aaaa (1 runs)' in out


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


@pytest.mark.parametrize('folder', PUBLISHED)
def test_published_tables_are_those_of_the_records(load_program, folder, tmp_path):
    name, scale = folder.split('-')
    program = load_program('tools/analysis_tools/make_table.py')
    page = tmp_path / 'page.md'
    page.write_text((RESULTS / f'{name}.md').read_text())
    sheet = tmp_path / 'table.csv'
    arguments = [name, '--scale', scale, '--records', str(RESULTS / 'records')]
    arguments += ['--markdown', str(page), '--csv', str(sheet)]
    assert program.main(arguments) == 0
    assert page.read_text() == (RESULTS / f'{name}.md').read_text()
    assert sheet.read_text() == (RESULTS / f'{folder}.csv').read_text()


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
