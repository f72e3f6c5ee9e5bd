"""Tests of run_table.py --slurm and --executor local: a run is a job of submitit."""

import importlib.util
import os
import shutil
import signal
import sys
import time

import cluster
import grid
import job
import pytest
import run_table as program
import training
from cluster import choose_devices, find_cluster, parse_time
from conftest import ROOT
from records import read_records
from slurm_programs import write_programs
from small_table import make_project

try:
    # Its import closes all open log files, so import it before the first test.
    import submitit
except ImportError:
    submitit = None

needs_submitit = pytest.mark.skipif(
    submitit is None, reason='submitit is not installed (pip install submitit)'
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The small project, with the programs of tools/paper."""
    root = make_project(tmp_path / 'project')
    for path in (ROOT / 'tools/paper').glob('*.py'):
        shutil.copy(path, root / 'tools/paper')
    monkeypatch.setattr(training, 'ROOT', root)
    monkeypatch.setattr(grid, 'GRID', root / 'tools/paper/tables.yml')
    # What jobs import: they are processes of their own, in which ROOT is this project.
    monkeypatch.setattr(cluster, 'FOLDER', root / 'tools/paper')
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    return root


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs that pretend to be Slurm's; the folder of what they know."""
    write_programs(tmp_path / 'bin')
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=':')
    folder = tmp_path / 'slurm'
    folder.mkdir()
    (folder / 'state').write_text('PENDING')
    monkeypatch.setenv('FAKE_SLURM', str(folder))
    if submitit:  # it remembers the jobs of earlier tests, which have the same ids
        from submitit import SlurmJob

        SlurmJob.watcher.clear()
    return folder


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handlers that run_table.py sets."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {signum: signal.getsignal(signum) for signum in signals}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def run_table(project, capsys):
    """Call run_table.py for the small table; what it prints."""

    def run(*arguments, code=0):
        small = ('small', '--scale', 'mini', '--out', str(run.out))
        assert program.main([*small, *arguments]) == code
        out, err = capsys.readouterr()
        return out + err

    run.out = project / 'out'
    run.records = lambda: read_records(run.out / 'small-mini.jsonl')[0]
    run.attempts = lambda name: (
        (run.out / 'small-mini' / name / 'attempts').read_text().splitlines()
    )
    return run


def test_time_limits():
    minutes = {
        '90': 90,
        '90:30': 90.5,
        '12:00:00': 720,
        '1-12': 36 * 60,
        '1-12:30': 36 * 60 + 30,
        '1-00:00:30': 24 * 60 + 0.5,
        'infinite': None,
        '12h': None,
        '-5': None,
    }
    assert {text: parse_time(text) for text in minutes} == minutes


def check_error(run_table, *arguments):
    """The arguments give one line of error before anything is made; the line."""
    message = run_table(*arguments, code=2)
    assert message.startswith('run_table.py: ') and message.count('\n') == 1, message
    assert not run_table.out.exists()
    return message


def test_without_submitit(run_table, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    for arguments in (['--slurm', 'gpu'], ['--executor', 'local']):
        message = check_error(run_table, *arguments)
        assert 'pip install submitit' in message and '.[cluster]' in message


@needs_submitit
def test_errors_before_any_work(run_table, slurm, monkeypatch):
    message = check_error(run_table, '--slurm', 'gpus')
    assert "no partition 'gpus'" in message and 'gpu, short, free' in message
    message = check_error(run_table, '--slurm', 'short', '--time', '2:00:00')
    assert '--time 2:00:00' in message and '60 minutes' in message
    message = check_error(run_table, '--executor', 'local', '--time', '2h')
    assert '--time 2h is no time limit' in message and '12:00:00' in message
    (slurm / 'down').touch()
    assert 'cannot contact controller' in check_error(run_table, '--slurm', 'gpu')
    monkeypatch.setenv('PATH', '/nowhere')
    message = check_error(run_table, '--slurm', 'gpu')
    assert 'not on PATH: sbatch, srun' in message and 'login node' in message


def test_wrong_arguments(capsys):
    for arguments, reason in (
        (['--slurm', 'gpu', '--executor', 'local'], 'not allowed with'),
        (['--time', '60'], '--time needs --slurm'),
    ):
        with pytest.raises(SystemExit):
            program.main(['table1', *arguments])
        assert reason in capsys.readouterr().err


@needs_submitit
def test_default_time_limit(slurm):
    for partition, limit, minutes in (
        ('gpu', None, 24 * 60),
        ('short', None, 60),
        ('free', None, 24 * 60),
        ('short,gpu', None, 24 * 60),
        ('gpu', '2-0', 48 * 60),
    ):
        assert find_cluster(partition, False, limit).minutes == minutes
    assert find_cluster(None, False) is None


def test_local_jobs_share_the_gpus(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    assert [choose_devices(2, slot) for slot in range(3)] == ['0,1', '2,3', '0,1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [choose_devices(1, slot) for slot in range(3)] == ['5', '7', '5']
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert choose_devices(2, 0) is None


@needs_submitit
def test_jobs_on_slurm(run_table, slurm, monkeypatch):
    """What is submitted, what of it is printed, and that it is submitted once."""

    def interrupt(seconds):
        monkeypatch.setattr(time, 'sleep', sleep)
        raise KeyboardInterrupt

    sleep = time.sleep
    monkeypatch.setattr(cluster, 'TIMEOUTS', 3)
    monkeypatch.setattr('submitit.SlurmExecutor._throttle', lambda self: None)
    monkeypatch.setattr(time, 'sleep', interrupt)  # Ctrl-C after the first round
    arguments = ('--rows', 'b', '--slurm', 'gpu', '--gpus', '2', '--time', '1-0')
    out = run_table(*arguments, code=130)
    for line in (
        'small-mini b-b2-s0: queued as job 100',
        'small-mini b-b4-s0: queued as job 101',
        'The jobs go on. To end them: scancel 100 101',
    ):
        assert line in out.splitlines()
    script = (slurm / '100.sh').read_text()
    for option in (
        'partition=gpu',
        'time=1440',
        'gpus-per-node=2',
        'ntasks-per-node=1',
        'cpus-per-task=10',
        'job-name=small-mini-b-b2-s0',
        'requeue',
        'signal=USR2@120',
    ):
        assert f'#SBATCH --{option}\n' in script
    (slurm / 'state').write_text('RUNNING')
    monkeypatch.setattr(time, 'sleep', interrupt)
    out = run_table(*arguments, code=130)
    assert 'small-mini b-b2-s0: running as job 100' in out
    assert len(list(slurm.glob('*.sh'))) == 2, 'what is queued was submitted again'
    states = [line.rpartition(': ')[2] for line in run_table('--dry-run').splitlines()]
    assert states == ['missing'] * 2 + ['running as job 100', 'running as job 101']
    (slurm / 'state').write_text('CANCELLED')
    states = [line.rpartition(': ')[2] for line in run_table('--dry-run').splitlines()]
    assert states == ['missing'] * 2 + ['begun'] * 2
    (slurm / 'refuse').touch()
    out = run_table(*arguments, code=2)
    assert 'The job of b-b2-s0 was not submitted' in out and 'node config' in out


@pytest.mark.slow
@needs_submitit
@pytest.mark.parametrize('where', ['local', 'slurm'])
def test_preempted_jobs_continue(run_table, slurm, monkeypatch, where):
    monkeypatch.setenv('FAKE_SLURM_RUNS', '1')
    monkeypatch.setenv('MODE_A', 'preempt')
    monkeypatch.setenv('MODE_B', 'diverge')
    (slurm / 'state').write_text('RUNNING')
    executor = ['--executor', 'local'] if where == 'local' else ['--slurm', 'gpu']
    arguments = ['--rows', 'a-b2', 'b-b2', *executor]
    out = run_table(*arguments)
    for name, result in (('a-b2-s0', 'finished, AP 20.0'), ('b-b2-s0', 'diverged at')):
        assert f'small-mini {name}: running as job ' in out
        assert f' small-mini {name}: {result}' in out
    records = run_table.records()
    assert records['a-b2-s0']['outcome'] == 'finished'
    assert records['a-b2-s0']['hardware']['jobs'] == 1
    assert len(run_table.attempts('a-b2-s0')) == 2
    assert len(run_table.attempts('b-b2-s0')) == 1
    requeued = slurm / 'requeued'
    assert requeued.exists() == (where == 'slurm')
    assert '2 runs, 2 of them done' in run_table(*arguments)
    assert len(run_table.attempts('a-b2-s0')) == 2


@pytest.mark.slow
@needs_submitit
def test_interrupted_local_jobs_end(run_table, project, monkeypatch):
    monkeypatch.setenv('MODE_A', 'hang')
    started = run_table.out / 'small-mini/a-b2-s0/started'
    sleep = time.sleep

    def interrupt(seconds):
        if started.exists():
            monkeypatch.setattr(time, 'sleep', sleep)
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(time, 'sleep', interrupt)
    out = run_table('--rows', 'a', '--executor', 'local', code=130)
    assert 'The same command continues the runs' in out
    assert 'small-mini a-b4-s0: queued' in out
    assert not run_table.records(), 'an interrupted run has no record'
    # The training has ended: a running one would hold the lock.
    monkeypatch.setenv('MODE_A', 'finish')
    assert 'a-b2-s0: finished' in run_table('--rows', 'a-b2')


@pytest.fixture
def train_job(run_table):
    """Return the job of a run, to be called in this process."""
    (run,) = grid.Table('small', 'mini').runs(['a-b2'])
    return job.TrainJob(run, run_table.out, 1, 1, None, on_slurm=False)


def test_job_returns_the_record(train_job, run_table, project, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(job.FOLDER), prepend=':')
    record = train_job()
    # Trainings must not import modules of tools/paper by accident.
    assert str(job.FOLDER) not in os.environ['PYTHONPATH'].split(':')
    assert record == run_table.records()['a-b2-s0'] and record['outcome'] == 'finished'
    assert train_job() == record
    assert len(run_table.attempts('a-b2-s0')) == 1, 'a run with a result is not trained'


@needs_submitit
def test_checkpoint_ends_the_training(train_job, run_table, monkeypatch):
    """submitit calls checkpoint() in a signal handler."""
    monkeypatch.setenv('MODE_A', 'preempt')
    following = []

    def preempt(signum, frame):
        following.append(train_job.checkpoint())
        sys.exit()

    signal.signal(signal.SIGUSR2, preempt)
    with pytest.raises(SystemExit):
        train_job()
    assert not run_table.records(), 'a preempted run has no record'
    (submission,) = following
    assert repr(submission.function) == repr(train_job)
    assert submission.result()['outcome'] == 'finished'
    assert len(run_table.attempts('a-b2-s0')) == 2


@pytest.mark.parametrize('on_slurm', [False, True])
def test_a_terminated_job_has_no_result(train_job, run_table, monkeypatch, on_slurm):
    """Slurm sends SIGTERM, and queues a preempted job again unless it has ended."""
    train_job.on_slurm = on_slurm
    monkeypatch.setattr(job, 'SECONDS_TO_THE_END', 2)
    monkeypatch.setenv('MODE_A', 'terminate')
    start = time.monotonic()
    with pytest.raises(RuntimeError, match='ended by SIGTERM'):
        train_job()
    assert (time.monotonic() - start >= 2) == on_slurm
    assert not run_table.records()
