import os
import random

import numpy as np
import pytest
import torch
from conftest import run_on_two_processes, runner_of
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSRunner
from pws_mmdet.engine import EpochSeedHook
from pws_mmdet.utils.model import unwrap_model


class Noise(Dataset):
    """Draws from every random generator that a transform may use."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return dict(x=torch.tensor([i, *noise]))


class Net(BaseModel):
    def __init__(self, seen):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.seen = seen

    def forward(self, x, mode='tensor'):
        self.seen.append(x.clone())
        x = torch.nn.functional.dropout(x)
        return dict(loss=self.fc(x).square().mean())


def train(make_runner, seed, epochs, loader, resume=False):
    seen = []
    torch.manual_seed(1)
    model = Net(seen)
    runner = make_runner(
        model,
        Noise(),
        epochs=epochs,
        loader=loader,
        resume=resume,
        randomness=dict(seed=seed),
        default_hooks=dict(sampler_seed=EpochSeedHook()),
    )
    runner.train()
    # Persistent workers end at once here. Of an iterator that the garbage collector
    # finds, each worker ends only after 5 seconds.
    runner.train_dataloader._iterator = None
    return model.fc.weight.detach().clone(), torch.cat(seen).view(-1, 8, 4)


@pytest.mark.parametrize(
    'loader',
    [
        dict(num_workers=0),
        dict(num_workers=2),
        dict(num_workers=2, persistent_workers=True),
    ],
    ids=['no workers', 'workers', 'persistent workers'],
)
def test_a_resumed_run_equals_the_uninterrupted_one(make_runner, loader):
    weight, seen = train(make_runner, 3, 3, loader)
    assert len(seen) == 3
    # Each epoch has other random numbers, and every image once.
    assert not torch.equal(seen[0], seen[1])
    assert all(sorted(epoch[:, 0].tolist()) == list(range(8)) for epoch in seen)
    assert len(set(seen[..., 1:].flatten().tolist())) == 3 * 8 * 3, 'workers differ'

    half_weight, half = train(make_runner, 3, 2, loader)
    assert torch.equal(half, seen[:2])
    resumed_weight, rest = train(make_runner, 3, 3, loader, resume=True)
    assert torch.equal(rest, seen[2:])
    assert torch.equal(resumed_weight, weight)
    assert not torch.equal(half_weight, weight)

    other_weight, other = train(make_runner, 4, 3, loader)
    assert not torch.equal(other, seen)
    assert not torch.equal(other_weight, weight)


def test_without_a_seed_runs_differ(make_runner):
    first, second = (
        train(make_runner, None, 1, dict(num_workers=0))[1] for _ in range(2)
    )
    assert not torch.equal(first, second)


def train_as_one_of_two(work_dir, epochs, resume=False):
    torch.manual_seed(1)
    seen = []
    runner = runner_of(
        Net(seen),
        Noise(),
        work_dir,
        PWSRunner,
        batch_size=2,
        epochs=epochs,
        resume=resume,
        randomness=dict(seed=3),
        default_hooks=dict(sampler_seed=EpochSeedHook()),
        launcher='pytorch',
    )
    weight = unwrap_model(runner.train()).fc.weight.detach()
    torch.distributed.barrier()  # the first one writes the checkpoint
    return weight, torch.cat(seen)


def worker(rank, path):
    os.environ['LOCAL_RANK'] = str(rank)
    whole = train_as_one_of_two(path / 'whole', 3)
    train_as_one_of_two(path / 'cut', 2)
    torch.save((whole, train_as_one_of_two(path / 'cut', 3, True)), path / f'{rank}.pt')


def test_two_processes_have_different_and_repeatable_seeds(tmp_path):
    run_on_two_processes(worker, tmp_path)
    drawn = []
    for rank in range(2):
        (weight, seen), (resumed_weight, rest) = torch.load(tmp_path / f'{rank}.pt')
        assert torch.equal(resumed_weight, weight)
        assert torch.equal(rest, seen[-len(rest) :]) and len(seen) == 3 * len(rest)
        drawn += seen[:, 1:].flatten().tolist()
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 4 * 3
