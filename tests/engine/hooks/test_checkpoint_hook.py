import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import runner_of
from mmengine.evaluator import BaseMetric
from mmengine.fileio import (
    BaseStorageBackend,
    FileClient,
    LocalBackend,
    register_backend,
)
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSRunner
from pws_mmdet.checkpoint.load import DamagedCheckpointError, load_file
from pws_mmdet.engine.checkpoint_files import LATEST, find_checkpoints

EPOCHS = 8
PARTS = 8  # number of parts in which a checkpoint is written


class Noise(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return dict(x=torch.randn(16))


class Net(BaseModel):
    """A large unused layer makes its checkpoints take a while to write."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.ballast = nn.Linear(1000, 2000)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.fc(x).square().mean() + self.ballast.bias.square().sum())


def train(work_dir, epochs=EPOCHS, resume=True, custom_hooks=()):
    torch.manual_seed(1)
    runner = runner_of(
        Net(),
        Noise(),
        work_dir,
        PWSRunner,
        epochs=epochs,
        resume=resume,
        randomness=dict(seed=3),
        default_hooks=dict(
            sampler_seed=dict(type='EpochSeedHook'),
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
        ),
        custom_hooks=[*custom_hooks],
    )
    runner.train()
    return runner.model.fc.weight.detach()


def weights(path):
    return load_file(str(path))['state_dict']['fc.weight']


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(self, obj, filepath):
    with open(filepath, 'wb') as f:
        f.write(obj[: len(obj) // 2])
    die()


class Gone:
    """Replaces ``open`` in MMEngine's hook: the process dies with an empty note."""

    def __init__(self, path, mode):
        open(path, mode).close()
        die()


def train_and_die(work_dir, moment):
    import mmengine.hooks.checkpoint_hook as host

    train(work_dir, epochs=2)
    if moment == 'writing':
        LocalBackend.put = half_a_file
    elif moment == 'renaming':
        os.replace = die
    elif moment == 'noting':
        host.open = Gone
    elif moment == 'deleting':
        LocalBackend.remove = die
    train(work_dir, epochs=3)


@pytest.fixture(scope='module')
def start():
    """Run a function in a new process that has imported the packages already."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdet', 'pws_mmdet', 'conftest'])

    def start(function, *args, wait=True, **kwargs):
        process = context.Process(target=function, args=args, kwargs=kwargs)
        process.start()
        if wait:
            process.join()
        return process

    start.pipe = context.Pipe
    return start


@pytest.mark.parametrize(
    'moment, found', [('writing', 2), ('renaming', 2), ('noting', 3), ('deleting', 3)]
)
def test_a_training_killed_while_it_writes_a_checkpoint(start, tmp_path, moment, found):
    """A whole checkpoint is found, and the resumed run has the same weights."""
    assert start(train_and_die, tmp_path, moment).exitcode == -signal.SIGKILL
    latest = find_checkpoints(tmp_path)[0]
    assert latest.name == f'epoch_{found}.pth'
    assert torch.equal(train(tmp_path), train(tmp_path / 'whole'))
    assert find_checkpoints(tmp_path)[0].name == f'epoch_{EPOCHS}.pth'
    assert not list(tmp_path.glob('.epoch*'))


def recorded(monkeypatch):
    """Record the calls that reach the disk: their order and file names."""
    events = []

    def record(owner, name, path_of):
        stock = getattr(owner, name)

        def call(*args, **kwargs):
            path = path_of(*args)
            result = stock(*args, **kwargs)
            events.append((name, os.path.basename(path)))
            return result

        monkeypatch.setattr(owner, name, call)

    record(os, 'fsync', lambda fd: os.readlink(f'/proc/self/fd/{fd}'))
    record(os, 'replace', lambda src, dst: dst)
    record(LocalBackend, 'remove', lambda self, path: path)
    return events


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='it names open files')
def test_the_old_checkpoint_is_removed_after_the_new_one_is_on_the_disk(
    tmp_path, monkeypatch
):
    train(tmp_path, epochs=1)
    events = recorded(monkeypatch)
    train(tmp_path, epochs=2)
    assert events == [
        ('fsync', '.epoch_2.pth.partial'),
        ('replace', 'epoch_2.pth'),
        ('fsync', tmp_path.name),
        ('remove', 'epoch_1.pth'),
    ]


class Steps(Hook):
    """Report every step to another process, and wait for its answer."""

    def __init__(self, ask):
        self.ask = ask

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.ask((runner.epoch, batch_idx))


def train_in_steps(work_dir, pipe):
    """Wait before every step, and after every part of a checkpoint."""

    def ask(event):
        pipe.send(event)
        pipe.recv()

    def put(self, obj, filepath):
        size = -(-len(obj) // PARTS)
        with open(filepath, 'wb', buffering=0) as f:
            for part in range(PARTS):
                f.write(obj[part * size : (part + 1) * size])
                ask((os.path.basename(filepath), part))

    LocalBackend.put = put
    train(work_dir, custom_hooks=[Steps(ask)])


def epochs_done(work_dir):
    """Return the epoch of the latest checkpoint, 0 if there is none."""
    latest = find_checkpoints(work_dir)[:1]
    for path in latest:
        assert weights(path).isfinite().all()
    return int(latest[0].stem.removeprefix('epoch_')) if latest else 0


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['in an epoch', 'in a checkpoint'])
def test_a_training_killed_at_random_moments(start, tmp_path, moment):
    """The training is killed five times, and resumes from its latest checkpoint."""
    work_dir, random_moments = tmp_path / 'killed', random.Random(0)
    for done in range(5):
        ours, theirs = start.pipe()
        process = start(train_in_steps, work_dir, theirs, wait=False)
        theirs.close()
        event = ours.recv()
        assert event == (done, 0)
        if moment == 'in an epoch':
            last = done + 1, random_moments.randint(1, 3)
        else:
            last = f'.epoch_{done + 2}.pth.partial', random_moments.randrange(PARTS)
        while event != last:
            ours.send(None)
            event = ours.recv()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert bool(list(work_dir.glob('.*'))) == (moment == 'in a checkpoint')
        assert epochs_done(work_dir) == done + 1
    assert torch.equal(train(work_dir), train(tmp_path / 'whole'))
    assert not list(work_dir.glob('.*'))


def test_old_checkpoints_are_removed(tmp_path):
    train(tmp_path)
    assert [p.name for p in tmp_path.glob('*.pth')] == [f'epoch_{EPOCHS}.pth']
    assert not list(tmp_path.glob('.*'))


def test_the_best_checkpoint_is_kept_until_there_is_a_better_one(tmp_path, monkeypatch):
    """A failed write does not delete the best checkpoint of the same name."""
    runner = runner_of(
        Net(),
        Noise(),
        tmp_path,
        PWSRunner,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', save_best='acc', rule='greater')
        ),
    )
    runner.train()
    hook = next(h for h in runner.hooks if type(h).__name__ == 'AtomicCheckpointHook')
    best = tmp_path / 'best_acc_epoch_1.pth'
    for acc in (0.1, 0.2):
        hook._save_best_checkpoint(runner, dict(acc=acc))
        assert best.is_file()
    monkeypatch.setattr(LocalBackend, 'put', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hook._save_best_checkpoint(runner, dict(acc=0.3))
    assert weights(best).isfinite().all()
    assert isinstance(hook.file_backend, LocalBackend)


def test_find_checkpoints_returns_the_latest_first(tmp_path):
    assert find_checkpoints(tmp_path) == []
    for i, name in enumerate(['epoch_9.pth', 'epoch_10.pth', 'best_epoch_3.pth']):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    nine, ten = tmp_path / 'epoch_9.pth', tmp_path / 'epoch_10.pth'
    assert find_checkpoints(tmp_path) == [ten, nine]
    for note in (nine, 'elsewhere/epoch_9.pth'):
        (tmp_path / LATEST).write_text(str(note))
        assert find_checkpoints(tmp_path) == [nine, ten]
    for note in ('', 'elsewhere/epoch_8.pth'):
        (tmp_path / LATEST).write_text(note)
        assert find_checkpoints(tmp_path) == [ten, nine]


def test_a_truncated_checkpoint_is_refused_and_another_is_named(tmp_path):
    train(tmp_path, epochs=1)
    shutil.copy(tmp_path / 'epoch_1.pth', tmp_path / 'copy.pth')
    shutil.move(tmp_path / 'copy.pth', tmp_path / 'iter_3.pth')
    latest = tmp_path / 'epoch_1.pth'
    latest.write_bytes(latest.read_bytes()[:-1000])
    with pytest.raises(DamagedCheckpointError) as error:
        train(tmp_path)
    assert f'{latest} is not a readable checkpoint' in str(error.value)
    assert f'--resume {tmp_path / "iter_3.pth"}' in str(error.value)
    (tmp_path / 'iter_3.pth').unlink()
    with pytest.raises(DamagedCheckpointError, match='truncated'):
        train(tmp_path)


def small_runner(work_dir, runner_type=PWSRunner, **checkpoint):
    """Make a runner with a validation and checkpoints."""
    val_loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=Noise(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    custom_hooks = checkpoint.pop('custom_hooks', [])
    return runner_of(
        Validated(),
        Noise(),
        work_dir,
        runner_type,
        val_dataloader=val_loader,
        val_evaluator=dict(type=Loss),
        val_cfg=dict(),
        custom_hooks=custom_hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint)),
    )


class Validated(Net):
    def forward(self, x, mode='tensor'):
        losses = super().forward(x, mode)
        return losses if mode == 'loss' else [losses['loss']]


class Loss(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(mean=float(torch.stack(results).mean()))


class ValidateFirst(Hook):
    def before_train(self, runner):
        runner.val_loop.run()


@pytest.mark.parametrize('save_best', [None, 'mean'])
def test_a_validation_without_a_training(tmp_path, save_best):
    options = dict(save_best=save_best, rule='less' if save_best else None)
    assert small_runner(tmp_path, **options).val()['mean'] > 0
    assert not list(tmp_path.rglob('*.pth'))
    small_runner(tmp_path, custom_hooks=[ValidateFirst()], **options).train()
    best = [p.name for p in tmp_path.glob('best*')]
    assert best == (['best_mean_epoch_1.pth'] if save_best else [])


def test_checkpoints_in_a_folder_of_the_work_dir(tmp_path):
    options = dict(filename_tmpl='ckpt/epoch_{}.pth', max_keep_ckpts=1)
    small_runner(tmp_path, **options).train()
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob('*.p*')]
    assert Path('ckpt/epoch_1.pth') in files
    assert not [path for path in files if 'partial' in path.name]
    assert find_checkpoints(tmp_path)[0] == tmp_path / 'ckpt/epoch_1.pth'
    moved = tmp_path.with_name(f'{tmp_path.name}_moved')
    tmp_path.rename(moved)
    assert find_checkpoints(moved)[0] == moved / 'ckpt/epoch_1.pth'


@pytest.mark.parametrize('convert', [str, Path])
def test_save_checkpoint_takes_paths(tmp_path, convert):
    runner = small_runner(tmp_path)
    runner.save_checkpoint(convert(tmp_path / 'new'), 'net.pth', save_optimizer=False)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['net.pth']
    assert torch.equal(weights(tmp_path / 'new/net.pth'), runner.model.fc.weight)


class Remote(BaseStorageBackend):
    """A store of files in memory."""

    files = {}

    def __init__(self, bucket=''):
        self.bucket = bucket

    def get(self, filepath):
        return self.files[filepath]

    def get_text(self, filepath):
        return self.files[filepath].decode()

    def put(self, obj, filepath):
        self.files[filepath] = obj

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath), *filepaths])

    def isfile(self, filepath):
        return filepath in self.files

    def isdir(self, filepath):
        return False

    def remove(self, filepath):
        del self.files[filepath]


@pytest.mark.parametrize('option', ['backend_args', 'file_client_args'])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_checkpoints_in_a_remote_store(tmp_path, monkeypatch, option):
    """An option names the store. The name of the folder has no ://."""
    Remote.files = {}
    register_backend('remote', Remote, force=True)
    monkeypatch.setitem(FileClient._backends, 'remote', Remote)
    options = dict(max_keep_ckpts=1, save_best='mean', rule='less', out_dir='a')
    small_runner(tmp_path, **options, **{option: dict(backend='remote')}).train()
    folder = f'a/{tmp_path.name}'
    names = [f'{folder}/epoch_1.pth', f'{folder}/best_mean_epoch_1.pth']
    assert sorted(Remote.files) == sorted(names)
    assert not list(tmp_path.rglob('*.pth'))
