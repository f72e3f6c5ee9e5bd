from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_on_two_processes
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import DivergenceError, DivergenceHook, PWSConv2d


class Net(BaseModel):
    """Its loss is NaN in one training step."""

    def __init__(self, bad_step, value):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.bad_step, self.value, self.step = bad_step, value, 0

    def forward(self, x, mode='tensor'):
        self.step += 1
        factor = self.value if self.step == self.bad_step else 1.0
        return dict(loss_a=self.fc(x).sum(), loss_b=self.fc(x).sum() * factor)


class Data(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return dict(x=torch.ones(2))


def train(make_runner, bad_step, interval, value=float('nan'), model=None, **kwargs):
    runner = make_runner(
        model or Net(bad_step, value),
        Data(),
        epochs=2,
        custom_hooks=[dict(type='DivergenceHook', interval=interval)],
        **{'batch_size': 2, **kwargs},
    )
    runner.train()
    return runner


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_and_says_where(make_runner, value):
    with pytest.raises(DivergenceError, match='diverged at iteration 8: ') as error:
        train(make_runner, 8, 1, value)
    assert error.value.iteration == 8
    assert 'loss_b is' in str(error.value) and 'loss_a' not in str(error.value)


def test_stops_before_the_step(make_runner):
    model = Net(8, float('nan'))
    with pytest.raises(DivergenceError):
        train(make_runner, 8, 1, model=model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Grows(BaseModel):
    """From some step on, the second of its layers puts out what overflows."""

    def __init__(self, bad_step, factor=1e30):
        super().__init__()
        self.a, self.b, self.c = (PWSConv2d(2, 2, 3, padding=1) for _ in range(3))
        self.bad_step, self.factor, self.step = bad_step, factor, 0

    def forward(self, x, mode='tensor'):
        self.step += 1
        x = x.view(-1, 2, 1, 1).expand(-1, -1, 4, 4)
        x = self.a(x)
        if self.step >= self.bad_step:
            with torch.no_grad():
                self.b.bias[0] = self.factor
        return dict(loss=self.c(self.b(x)).pow(2).mean())


def test_names_the_first_layer_that_exploded(make_runner):
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 5, 1, model=Grows(5))
    first, layer, ways = str(error.value).splitlines()
    assert first == 'Training diverged at iteration 5: loss is inf.'
    assert layer.startswith('The output of b is the first to explode: its variance is')
    assert 'in the first step' in layer
    assert 'Try' in ways and 'gamma=0.001' in ways
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 1, 1, model=Grows(1))
    assert 'The output of b' in str(error.value)
    assert 'in the first step' not in str(error.value)


class Poisoned(Net):
    """A step writes NaN into weights that no loss depends on."""

    def __init__(self):
        super().__init__(100, 0.0)
        self.unused = nn.Linear(1, 1)

    def forward(self, x, mode='tensor'):
        losses = super().forward(x)
        if self.step == 4:
            self.unused.weight.data.fill_(float('nan'))
        return losses


@pytest.mark.parametrize('by_epoch', [True, False])
def test_bad_weights_do_not_replace_the_last_good_checkpoint(make_runner, by_epoch):
    checkpoint = dict(
        type='CheckpointHook',
        interval=1 if by_epoch else 3,
        by_epoch=by_epoch,
        max_keep_ckpts=1,
    )
    with pytest.raises(DivergenceError, match='weights are not finite, unused') as e:
        train(
            make_runner,
            0,
            50,
            model=Poisoned(),
            default_hooks=dict(checkpoint=checkpoint),
            batch_size=4,
        )
    assert e.value.iteration == 6
    path = str(e.value).split('checkpoint is ')[1].rstrip('.')
    weights = torch.load(path, weights_only=False)['state_dict']
    assert all(torch.isfinite(w).all() for w in weights.values())


class OwnStep(Net):
    """A model that does without parse_losses."""

    def train_step(self, data, optim_wrapper):
        losses = self(**data)
        optim_wrapper.update_params(sum(losses.values()))
        return losses


def test_a_model_with_a_training_step_of_its_own(make_runner):
    with pytest.raises(DivergenceError, match='iteration 8: loss_b is nan'):
        train(make_runner, 8, 1, model=OwnStep(8, float('nan')))


def worker(rank, path):
    torch.manual_seed(0)
    bad_step = 3 if rank else 100
    model = MMDistributedDataParallel(Net(bad_step, float('nan')))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        iter=0,
        hooks=[],
        message_hub=MessageHub('t'),
    )
    hook = DivergenceHook(1)
    hook.before_train(runner)
    with pytest.raises(DivergenceError, match='iteration 3: ') as error:
        while runner.iter < 5:
            batch = dict(x=torch.ones(2, 2))
            hook.before_train_iter(runner, runner.iter, batch)
            outputs = model.train_step(batch, wrapper)
            hook.after_train_iter(runner, runner.iter, batch, outputs)
            runner.iter += 1
    Path(path, str(rank)).write_text(str(error.value))


def test_all_processes_stop_together(tmp_path):
    run_on_two_processes(worker, str(tmp_path))
    assert 'the loss of another process' in (tmp_path / '0').read_text()
    assert 'loss_b is nan' in (tmp_path / '1').read_text()


def test_leaves_nothing_in_the_model(make_runner):
    runner = train(make_runner, 100, 1)
    assert 'parse_losses' not in vars(runner.model)
    assert not any(m._forward_hooks for m in runner.model.modules())


@pytest.mark.parametrize('step', [9, 11, 12])  # of two epochs of 6
def test_looks_at_every_interval_and_says_since_when(make_runner, step):
    model = Net(step, float('nan'))
    with pytest.raises(DivergenceError, match='iteration') as error:
        train(make_runner, step, 4, model=model)
    assert model.step == 12 + 1  # once more, for the layer
    assert error.value.iteration == step
    assert train(make_runner, 100, 1).iter == 12


def test_a_loss_that_comes_back_is_not_the_beginning(make_runner):
    """As when mixed precision skips a step."""

    class Skips(Net):
        def forward(self, x, mode='tensor'):
            losses = super().forward(x, mode)
            if self.step in (5, 7, 8):  # no gradient: the weights stay finite
                losses['loss_b'] = torch.full((), float('inf'))
            return losses

    with pytest.raises(DivergenceError) as error:
        train(make_runner, 100, 4, model=Skips(100, 0.0))
    assert error.value.iteration == 7
