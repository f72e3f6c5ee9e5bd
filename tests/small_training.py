"""A small network, its data and its runner, for tests of the runner and its hooks."""

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSRunner


class Backbone(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.fc = nn.Linear(2, 2)


class Net(BaseModel):
    def __init__(self, path=None):
        super().__init__()
        init_cfg = path and dict(type='Pretrained', checkpoint=path)
        self.backbone = Backbone(init_cfg)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.backbone.fc(x).sum())


class Data(Dataset):
    opened = 0

    def __init__(self, length=4, **annotations):
        self.length = length
        Data.opened += 1

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return dict(x=torch.ones(2))


class Evaluator(BaseMetric):
    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        Evaluator.calls += 1
        return dict(ones=len(results))


def small_runner(make_runner, model, **kwargs):
    """Make a PWSRunner that trains a model on ``Data``."""
    loader = dict(dataset=dict(type=Data))
    return make_runner(model, None, PWSRunner, **{'loader': loader, **kwargs})
