import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d
from pws_mmdet.analysis.model_findings import NO_DECAY
from pws_mmdet.engine.hooks.model_summary import ModelSummaryHook

SIZE = Config(dict(test_dataloader=dict(type='Resize', scale=(6, 5))))
MACS = 6 * 5 * (2 * 3 * 9)


class Net(BaseModel):
    def __init__(self, takes_images=True):
        super().__init__(dict(type='ImgDataPreprocessor'))
        self.conv = PWSConv2d(3, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)
        self.takes_images = takes_images
        self.steps = 0

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        y = self.bn(self.conv(inputs))
        if mode == 'tensor':
            assert self.takes_images
            return y
        self.steps += 1
        return dict(loss=y.mean())


class Data(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(inputs=torch.rand(3, 8, 8))


@pytest.fixture
def log(monkeypatch):
    """A list of what is logged: pairs of a level and a text."""
    records = []

    def handle(self, record):
        records.append((record.levelno, record.getMessage()))

    monkeypatch.setattr(MMLogger, 'handle', handle)
    return records


@pytest.fixture
def train(make_runner, log):
    """Train, and return the messages of the hook and the runner."""

    def train_model(model, hook, **kwargs):
        runner = make_runner(
            model, Data(), epochs=2, custom_hooks=[hook], log_level='INFO', **kwargs
        )
        runner.train()
        assert model.steps == 2
        texts = ('The model is made of', 'ModelSummaryHook could')
        return [record for record in log if record[1].startswith(texts)], runner

    return train_model


def test_the_summary_is_logged_once_before_the_first_step(train):
    optimizer = dict(type='SGD', lr=0.1, weight_decay=1e-4)
    model = Net()
    [(level, text)], _ = train(
        model, dict(type='ModelSummaryHook'), optim_wrapper=dict(optimizer=optimizer)
    )
    assert level == logging.INFO
    assert 'PWS convolutions' in text
    assert '1 of 2 layers normalize outputs: bn' in text
    assert 'eval mode' in text  # only the model's own train() sets it
    assert 'towards 0, unlike in the paper: conv.alpha. ' + NO_DECAY in text


def test_the_suggested_constructor_stops_the_decay_of_alphas(train):
    scope = {}
    exec(NO_DECAY, scope)
    optimizer = dict(type='SGD', lr=0.1, weight_decay=1e-4)
    optim_wrapper = dict(optimizer=optimizer, **scope['optim_wrapper'])
    hook = dict(type='ModelSummaryHook')
    [(_, text)], _ = train(Net(), hook, optim_wrapper=optim_wrapper)
    assert 'none decayed' in text and 'towards 0' not in text


def test_macs_are_counted_unless_switched_off(train, log):
    [(level, text)], _ = train(Net(), dict(type='ModelSummaryHook'), cfg=SIZE)
    assert level == logging.INFO
    assert f'{MACS / 1000:.3g} K' in text
    assert 'a random image of 5 x 6 pixels' in text
    log.clear()
    [(_, text)], _ = train(Net(), ModelSummaryHook(macs=False), cfg=SIZE)
    assert 'MACs' not in text


def test_the_training_has_the_same_weights_without_the_hook(make_runner):
    weights = []
    for hooks in ([], [ModelSummaryHook()]):
        torch.manual_seed(0)
        model = Net()
        make_runner(
            model, Data(), cfg=SIZE, custom_hooks=hooks, randomness=dict(seed=1)
        ).train()
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_config_without_an_image_size(train):
    [(_, text)], _ = train(Net(), dict(type='ModelSummaryHook'))
    assert 'no Resize that tells a size' in text


def test_a_model_whose_forward_pass_fails(train):
    hook = dict(type='ModelSummaryHook')
    [(_, text)], _ = train(Net(takes_images=False), hook, cfg=SIZE)
    assert 'no forward pass of a random image of 5 x 6 pixels: AssertionError' in text


def test_an_error_does_not_stop_the_training(train, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError('odd')

    monkeypatch.setattr('pws_mmdet.engine.hooks.model_summary.summarize_model', fail)
    [(level, text)], _ = train(Net(), ModelSummaryHook())
    assert level == logging.WARNING
    assert text.endswith("could not describe the model: ZeroDivisionError('odd')")


def test_only_the_first_process_logs(train, log, monkeypatch):
    hook = ModelSummaryHook()
    _, runner = train(Net(), hook)
    log.clear()
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda *_: 1)
    hook.before_train(runner)
    assert not log
