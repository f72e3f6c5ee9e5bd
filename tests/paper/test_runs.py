"""Tests of tools/paper/run_table.py: it trains the missing runs of a table."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import grid
import pytest
import run_table as program
import training
from conftest import ROOT, load_config
from records import read_records
from small_table import make_project


def test_dry_run_needs_nothing(capsys, tmp_path):
    for name, runs in (('table4', 4 * 13), ('table5', 6)):
        arguments = [name, '--dry-run', '--data', 'nowhere', '--out', str(tmp_path)]
        assert program.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == runs
        for line in lines:
            assert (ROOT / line.split()[0]).is_file()
            assert line.endswith(': missing')
    assert not list(tmp_path.iterdir())


def test_dry_run_may_be_cut_short():
    """The reader of the output stops early, as `head` does."""
    command = [sys.executable, 'tools/paper/run_table.py', 'table1', '--dry-run']
    program = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    program.stdout.close()
    message = program.stderr.read()
    assert program.wait() == 0
    assert 'BrokenPipe' not in message


def test_dry_run_imports_neither_torch_nor_mmdet():
    """They print on import with MMDetection's forks, and take seconds."""
    code = """
import sys
sys.path.insert(0, 'tools/paper')
import run_table
assert run_table.main(['table1', '--dry-run']) == 0
loaded = {'mmcv', 'mmdet', 'mmengine', 'pws_mmdet', 'torch'} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root of the small project."""
    root = make_project(tmp_path / 'project')
    monkeypatch.setattr(training, 'ROOT', root)
    monkeypatch.setattr(grid, 'GRID', root / 'tools/paper/tables.yml')
    return root


@pytest.fixture
def run_table(root):
    """Call run_table.py for the small table; the records by the names of runs."""
    out = root / 'out'

    def run(*arguments, code=0):
        assert (
            program.main(['small', '--scale', 'mini', '--out', str(out), *arguments])
            == code
        )
        records, broken = read_records(run.file)
        assert not broken
        return dict(sorted(records.items()))

    run.folder = out / 'small-mini'
    run.file = out / 'small-mini.jsonl'
    return run


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
    lines = run_table.file.read_text().splitlines(keepends=True)
    whole = [line for line in lines if '"b-b4-s0"' not in line]
    run_table.file.write_text(''.join([*whole, '{"run": "b-b4-s0", "row"']))
    records = run_table()
    assert records['a-b2-s0']['outcome'] == 'finished'
    assert records['b-b4-s0']['outcome'].startswith('diverged')
    count = [attempts(run_table, name) for name in records]
    assert count == [2, 2, 1, 2]
    run_table()
    assert [attempts(run_table, name) for name in records] == count


@pytest.mark.slow
def test_interrupted_trainings_end_and_go_on(run_table, root, tmp_path):
    script = tmp_path / 'program.py'
    script.write_text(
        f'import sys\nsys.path.insert(0, {str(ROOT / "tools/paper")!r})\n'
        'import grid, pathlib, run_table, training\n'
        f'training.ROOT = pathlib.Path({str(root)!r})\n'
        'grid.GRID = training.ROOT / "tools/paper/tables.yml"\n'
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
    assert 'The same command continues the runs' in out
    assert not run_table.file.exists(), 'an interrupted run has no record'
    assert not (folder / 'b-b2-s0').exists(), 'none is begun after the interruption'
    # The trainings have ended: a running one would hold the lock.
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
    """--data replaces the data folder of the config and of the row."""
    path = root / 'tools/paper/tables.yml'
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


def test_attempts_without_a_checkpoint_are_left_out(run_table, root, monkeypatch):
    """The training does not continue from them."""
    describe = training.describe_environment
    for revision, mode in (('a', 'half'), ('b', 'fail'), ('c', 'finish')):
        monkeypatch.setenv('MODE_A', mode)
        environment = dict(describe(root), revision=revision)
        monkeypatch.setattr(
            training, 'describe_environment', lambda _, e=environment: e
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


def test_find_data():
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.merge_from_dict(dict(training.find_data(cfg, '/d')))
    assert cfg.train_dataloader.dataset.data_root == '/d/'
    assert cfg.val_evaluator[0].ann_file == '/d/annotations/instances_val2017.json'
    cfg = load_config('configs/voc/ssd320_vgg16_pws_voc.py')
    cfg.merge_from_dict(dict(training.find_data(cfg, '/d')))
    roots = {d.data_root for d in cfg.train_dataloader.dataset.datasets}
    assert roots == {'/d/'}
