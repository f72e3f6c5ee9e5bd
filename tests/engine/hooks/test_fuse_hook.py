import copy
import functools

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d, PWSRunner
from pws_mmdet.engine import FusePWSHook
from pws_mmdet.layers import ReparamConv2d


class Data(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(x=torch.full((3, 5, 5), 1.0 + i))


class Net(BaseModel):
    """A convolution. The list ``tested`` records its type in each test step."""

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
    def make(model, runner_type=PWSRunner, evaluator=Outputs, **kwargs):
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
            runner_type,
            test_dataloader=loader,
            test_evaluator=dict(type=evaluator),
            test_cfg=dict(),
            **kwargs,
        )

    return make


def hooks_of(runner):
    return sum(isinstance(hook, FusePWSHook) for hook in runner.hooks)


def inputs():
    return torch.stack([Data()[i]['x'] for i in range(4)])


def test_a_test_uses_plain_convolutions(runner):
    model = Net()
    nn.init.uniform_(model.conv.alpha)
    before = copy.deepcopy(model.state_dict())
    tester = runner(model)
    outputs = tester.test()['test/outputs']
    assert tested == [(nn.Conv2d, False)]
    assert tester.model is model and type(model.conv) is PWSConv2d
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))


def test_a_second_test_uses_the_new_weights(runner):
    model = Net()
    tester = runner(model)
    tester.test()
    with torch.no_grad():
        model.conv.alpha.add_(1)
    outputs = tester.test()['test/outputs']
    assert hooks_of(tester) == 1
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))


def test_averaged_weights_are_fused(runner, tmp_path):
    ema = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma=1)
    kept = functools.partial(PWSConv2d, keep_mean=True)
    model = Net(kept)
    nn.init.normal_(model.conv.mean)
    runner(model, custom_hooks=[ema], batch_size=1).train()
    path = tmp_path / 'work_dir/epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    for key in ('state_dict', 'ema_state_dict'):  # a constant stays as it is
        name = 'module.conv.mean' if 'ema' in key else 'conv.mean'
        assert torch.equal(checkpoint[key][name], model.conv.mean)
    averaged = Net(kept)
    averaged.load_state_dict(checkpoint['state_dict'])
    trained = Net(kept)
    keys = checkpoint['ema_state_dict']
    trained.load_state_dict(
        {k.removeprefix('module.'): v for k, v in keys.items() if 'module.' in k}
    )
    expected, other = (torch.stack(m(inputs())) for m in (averaged, trained))
    assert (expected - other).abs().max() > 1e-3, 'or this tests nothing'

    model = Net(kept)
    # Resuming gives the network the weights before averaging.
    tester = runner(model, custom_hooks=[ema], resume=True, load_from=str(path))
    outputs = tester.test()['test/outputs']
    assert tested == [(nn.Conv2d, False)]
    torch.testing.assert_close(outputs, expected)
    assert tester.model is model
    torch.testing.assert_close(model.state_dict(), trained.state_dict())


def test_a_network_without_pws_is_not_copied(runner, monkeypatch, messages):
    monkeypatch.setattr('pws_mmdet.engine.hooks.fuse.fuse_pws', None)
    model = Net(nn.Conv2d)
    tester = runner(model)
    tester.test()
    assert not any('FusePWSHook' in text for text in messages)
    assert tested == [(nn.Conv2d, False)]


def test_a_hook_in_the_config_replaces_the_default(runner):
    tester = runner(Net(), custom_hooks=[dict(type='FusePWSHook')])
    tester.test()
    assert hooks_of(tester) == 1
    assert tested == [(nn.Conv2d, False)]


def test_a_training_keeps_pws_layers(runner):
    trainer = runner(Net())
    trainer.train()
    assert isinstance(trainer.model.conv, ReparamConv2d)


class Doubled(PWSConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(PWSConv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias) + 1


class OwnFilters(PWSConv2d):
    def effective_weight(self):
        return 2 * super().effective_weight()


def double_on_the_instance(conv):
    usual = conv.forward
    conv.forward = functools.wraps(usual)(lambda x: 2 * usual(x))


def double_by_a_hook(conv):
    conv.register_forward_hook(lambda module, args, y: 2 * y)


def double_the_input_by_a_hook(conv):
    conv.register_forward_pre_hook(lambda module, args: (2 * args[0],))


@pytest.mark.parametrize(
    'conv, change',
    [
        (Doubled, None),
        (Shifted, None),
        (PWSConv2d, double_on_the_instance),
        (PWSConv2d, double_by_a_hook),
        (PWSConv2d, double_the_input_by_a_hook),
        (OwnFilters, None),
    ],
)
def test_a_layer_that_computes_more_is_not_fused(runner, messages, conv, change):
    model = Net(conv)
    if change:
        change(model.conv)
    tester = runner(model)
    for _ in range(2):
        outputs = tester.test()['test/outputs']
        torch.testing.assert_close(outputs, torch.stack(model(inputs())))
    is_plain = conv is OwnFilters
    assert tested[0][0] is (nn.Conv2d if is_plain else conv)
    told = [text for text in messages if 'conv has a' in text]
    assert len(told) == (not is_plain)  # The warning is logged once.


def test_a_network_that_cannot_be_copied_is_not_fused(runner, messages):
    model = Net()
    model.seen = model.conv.weight * 2  # torch copies only leaf tensors.
    outputs = runner(model).test()['test/outputs']
    assert tested == [(PWSConv2d, False)]
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))
    assert any('cannot copy the network' in text for text in messages)


class Fails(Net):
    """Its first test ends with an error."""

    error = None

    def forward(self, x, mode='tensor'):
        if mode == 'predict' and Fails.error:
            error, Fails.error = Fails.error, None
            raise error
        return super().forward(x, mode)


class FailsLater(Outputs):
    error = None

    def compute_metrics(self, results):
        if FailsLater.error:
            error, FailsLater.error = FailsLater.error, None
            raise error
        return super().compute_metrics(results)


@pytest.mark.parametrize('where', [Fails, FailsLater])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('runner_type', [PWSRunner, Runner])
def test_the_network_is_restored_after_a_failed_test(
    runner, tmp_path, where, error, runner_type
):
    """It can be tested and trained again, and its checkpoint has alpha."""
    model = Fails()
    hook = dict(custom_hooks=[dict(type='FusePWSHook')])
    tester = runner(model, runner_type, evaluator=FailsLater, **hook)
    where.error = error()
    with pytest.raises(error):
        tester.test()
    assert tester.model is model and type(model.conv) is PWSConv2d
    outputs = tester.test()['test/outputs']
    assert tester.model is model and tested[-1] == (nn.Conv2d, False)
    torch.testing.assert_close(outputs, torch.stack(model(inputs())))
    before = model.conv.weight.detach().clone()
    tester.train()
    assert not torch.equal(model.conv.weight, before)
    weights = torch.load(tmp_path / 'work_dir/epoch_1.pth', weights_only=False)
    torch.testing.assert_close(weights['state_dict'], dict(model.state_dict()))
    assert 'conv.alpha' in weights['state_dict']
