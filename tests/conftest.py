import copy
import faulthandler
import functools
import gc
import importlib.util
import itertools
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Parallel tests share the cores. torch reads this variable when it is imported.
if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from pws_mmdet import compat  # it must be imported before MMDetection

ROOT = Path(__file__).parents[1]
pytest_plugins = ['detection_data']

torch.set_num_threads(min(torch.get_num_threads(), 4))

# For each config of MMDetection that it reads, MMEngine reads 100 YAML files.
config_utils.load = functools.cache(config_utils.load)

# float16 as a parameter of tests
FLOAT16 = pytest.param(
    torch.float16,
    marks=pytest.mark.skipif(
        torch.__version__ < '2.3', reason='fp16 convolutions on a CPU need torch 2.3'
    ),
)

# The server imports these modules once, so that its processes start quickly.
multiprocessing.set_forkserver_preload(['torch', 'pws_mmdet'])


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture(params=[True, False], ids=['allow-list', 'before torch 2.6'])
def unpickler(request, monkeypatch):
    """Read checkpoints as torch 2.6 and later do, and as torch before 2.6."""
    if request.param and not compat.HAS_ALLOW_LIST:
        pytest.skip('torch is older than 2.6')
    monkeypatch.setattr(compat, 'HAS_ALLOW_LIST', request.param)
    if not request.param:
        name = 'get_unsafe_globals_in_checkpoint'
        monkeypatch.delattr(torch.serialization, name, raising=False)


# Other tests run beside the longest ones, if these begin first.
LONGEST = (
    'test_demo',
    'test_headline_configs_on_real_images',
    'test_all_of_it_on_a_cpu',
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: getattr(item, 'originalname', '') not in LONGEST)


def pytest_collection_finish():
    # MMEngine's datasets call gc.collect(), which would look at all of torch each time.
    gc.freeze()


_experiments = itertools.count()  # MMEngine needs a new name for each runner


@functools.cache
def _read_config(path):
    return Config.fromfile(path)


def load_config(path):
    """Return a copy of a config of the project. Each file is read once."""
    return copy.deepcopy(_read_config(ROOT / path))


def _process(rank, port, function, args):
    faulthandler.dump_traceback_later(300, exit=True)  # do not hang for ever
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    function(rank, *args)
    # Delete the wrappers of models first. A wrapper that is deleted after the group
    # can deadlock with the group's threads.
    gc.collect()
    dist.destroy_process_group()


def run_on_two_processes(function, *args):
    """Call ``function(rank, *args)`` in both processes of a gloo group."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.start_processes(
        _process, (port, function, args), nprocs=2, start_method='forkserver'
    )


@pytest.fixture(autouse=True)
def defaults():
    torch.manual_seed(0)
    init_default_scope('mmdet')


@pytest.fixture
def device():
    """Return the GPU for tests marked ``gpu``, with TF32 switched off.

    PWS_GPU_TESTS_ON=cpu runs these tests on a CPU, to try them without a GPU.
    """
    name = os.environ.get('PWS_GPU_TESTS_ON', 'cuda')
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('the test needs a GPU')
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield torch.device(name)
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.fixture(scope='session')
def root():
    return ROOT


@pytest.fixture(scope='session')
def load_program():
    """Return a function that imports a program by its path. tools/ is no package."""

    def load(path):
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Return a folder of a few images of digits in COCO's layout."""
    from digits.coco import convert

    folder = tmp_path_factory.mktemp('data') / 'digits'
    convert(folder, num_train=12, num_val=6, size=96)
    return folder


@pytest.fixture
def coco_mini():
    """Return a folder of a few images of COCO, in COCO's layout."""
    folder = Path(os.environ.get('PWS_DATA_ROOT', 'data')).resolve() / 'coco_mini'
    if not folder.is_dir():
        pytest.skip(f'there are no images of COCO in {folder} (set PWS_DATA_ROOT)')
    return folder


@pytest.fixture
def messages(monkeypatch):
    """Return the list of the warnings that MMEngine logs, as texts."""
    texts = []

    def handle(self, record):
        if record.levelno >= logging.WARNING:
            texts.append(record.getMessage())

    monkeypatch.setattr(MMLogger, 'handle', handle)
    return texts


@pytest.fixture
def run(root, tmp_path):
    """Return a function that runs a program in an empty folder.

    It returns the finished process. Its stdout holds both outputs as text.
    """

    def run_program(*command, check=True, timeout=900, **env):
        path = os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])
        bin_dir = str(Path(sys.executable).parent)
        process = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env={
                **os.environ,
                'PYTHONPATH': path.rstrip(os.pathsep),
                'PATH': os.pathsep.join([bin_dir, os.environ['PATH']]),
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check:
            assert process.returncode == 0, process.stdout[-6000:]
        return process

    return run_program


def runner_of(
    model, dataset, work_dir, runner_type=Runner, batch_size=4, epochs=1, **kwargs
):
    """Return an MMEngine runner of a model and a dataset."""
    loader = dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    loader.update(kwargs.pop('loader', {}))
    cfg = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        experiment_name=f'test_{next(_experiments)}',
        default_scope='mmdet',
        log_level='WARNING',
    )
    return runner_type(**{**cfg, **kwargs})


@pytest.fixture
def make_runner(tmp_path):
    """Return ``runner_of`` with the work_dir ``tmp_path / 'work_dir'``."""

    def make(model, dataset, *args, **kwargs):
        return runner_of(model, dataset, tmp_path / 'work_dir', *args, **kwargs)

    return make
