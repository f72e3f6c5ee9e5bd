import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import DivergenceError


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


def train(make_runner, bad_step, interval, value=float('nan')):
    runner = make_runner(
        Net(bad_step, value),
        Data(),
        epochs=2,
        batch_size=2,
        custom_hooks=[dict(type='DivergenceHook', interval=interval)],
    )
    runner.train()
    return runner


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_and_says_where(make_runner, value):
    with pytest.raises(DivergenceError, match='diverged at iteration 8: ') as error:
        train(make_runner, 8, 1, value)
    assert error.value.iteration == 8
    assert 'loss_b is' in str(error.value) and 'loss_a' not in str(error.value)


def test_looks_at_every_interval(make_runner):
    with pytest.raises(DivergenceError, match='iteration 8'):
        train(make_runner, 8, 4)
    assert train(make_runner, 100, 1).iter == 12
