import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import FusePWSHook, PWSConv2d, PWSRunner
from pws_mmdet.layers import ReparamConv2d


class Data(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(x=torch.full((3, 5, 5), 1.0 + i))


class Net(BaseModel):
    """A convolution, and a record of what was tested."""

    def __init__(self, conv=PWSConv2d):
        super().__init__()
        self.conv = conv(3, 2, 3)

    def forward(self, x, mode='tensor'):
        y = self.conv(x).mean((1, 2, 3))
        if mode == 'loss':
            return dict(loss=(y - 1).square().mean())
        tested.append((type(self.conv), self.training))
        return list(y)


class Outputs(BaseMetric):
    default_prefix = 'test'

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(outputs=torch.stack(results))


tested = []


@pytest.fixture
def runner(make_runner):
    def make(model, **kwargs):
        tested.clear()
        loader = dict(
            batch_size=4,
            num_workers=0,
            dataset=Data(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        )
        return make_runner(
            model,
            Data(),
            PWSRunner,
            test_dataloader=loader,
            test_evaluator=dict(type=Outputs),
            test_cfg=dict(),
            **kwargs,
        )

    return make


def hooks_of(runner):
    return sum(isinstance(hook, FusePWSHook) for hook in runner.hooks)


def inputs():
    return torch.stack([Data()[i]['x'] for i in range(4)])


def test_a_test_runs_on_plain_convolutions(runner):
    model = Net()
    nn.init.uniform_(model.conv.alpha)
    before = copy.deepcopy(model.state_dict())
    tester = runner(model)
    outputs = tester.test()['test/outputs']
    assert tested == [(nn.Conv2d, False)]
    assert tester.model is model and type(model.conv) is PWSConv2d
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))


def test_again_after_another_change(runner):
    model = Net()
    tester = runner(model)
    tester.test()
    with torch.no_grad():
        model.conv.alpha.add_(1)
    outputs = tester.test()['test/outputs']
    assert hooks_of(tester) == 1
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))


def test_averaged_weights_are_the_ones_that_are_fused(runner, tmp_path):
    ema = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma=1)
    runner(Net(), custom_hooks=[ema], batch_size=1).train()
    path = tmp_path / 'work_dir/epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    averaged = Net()
    averaged.load_state_dict(checkpoint['state_dict'])
    trained = Net()
    keys = checkpoint['ema_state_dict']
    trained.load_state_dict(
        {k.removeprefix('module.'): v for k, v in keys.items() if 'module.' in k}
    )
    expected, other = (torch.stack(m(inputs())) for m in (averaged, trained))
    assert (expected - other).abs().max() > 1e-3, 'or this tests nothing'

    model = Net()
    # resumed, so that the network holds the weights before averaging
    tester = runner(model, custom_hooks=[ema], resume=True, load_from=str(path))
    outputs = tester.test()['test/outputs']
    assert tested == [(nn.Conv2d, False)]
    torch.testing.assert_close(outputs, expected)
    assert tester.model is model
    torch.testing.assert_close(model.state_dict(), trained.state_dict())


def test_a_network_without_pws_gets_no_hook(runner):
    model = Net(nn.Conv2d)
    tester = runner(model)
    tester.test()
    assert hooks_of(tester) == 0
    assert tested == [(nn.Conv2d, False)]


def test_a_hook_of_the_users_own_is_not_doubled(runner):
    tester = runner(Net(), custom_hooks=[dict(type='FusePWSHook')])
    tester.test()
    assert hooks_of(tester) == 1
    assert tested == [(nn.Conv2d, False)]


def test_a_training_keeps_the_layers(runner):
    trainer = runner(Net())
    trainer.train()
    assert hooks_of(trainer) == 0
    assert isinstance(trainer.model.conv, ReparamConv2d)
