import contextlib
import copy
import math

import pytest
import torch
from conftest import run_on_two_processes
from mmengine.model import BaseModel, BaseModule, MMDistributedDataParallel
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSAlphaInitHook, PWSConv2d


class Pictures(Dataset):
    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.pictures = 3 * torch.randn(4, 3, 16, 16, generator=generator)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return dict(x=self.pictures[i])


class Backbone(BaseModule):
    """The names of a ResNet: a stem and a block with downsampling."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv1 = PWSConv2d(3, 8, 3, padding=1)
        block = nn.Module()
        block.conv1 = PWSConv2d(8, 8, 3, padding=1)
        block.conv2 = PWSConv2d(8, 8, 3, padding=1)
        block.downsample = nn.Sequential(PWSConv2d(8, 8, 1))
        self.layer1 = nn.Sequential(block)

    def forward(self, x):
        x = self.conv1(x).relu()
        block = self.layer1[0]
        return block.conv2(block.conv1(x).relu()) + block.downsample(x)


class Detector(BaseModel):
    def __init__(self, init_cfg=None, rois=2):
        super().__init__()
        self.backbone = Backbone(init_cfg)
        self.head = PWSConv2d(8, 8, 3, alpha='layer')
        self.fixed = PWSConv2d(8, 8, 3, alpha='fixed')
        self.rois = rois

    def forward(self, x, mode='tensor'):
        x = self.backbone(x).relu()
        head = self.head(x) if self.rois else self.head(x[:0])
        loss = sum((0.0 * y).sum() for y in (head, self.head(x), self.fixed(x)))
        return dict(loss=loss)


def train(make_runner, model, lr=0.0, **kwargs):
    optimizer = dict(type='SGD', lr=lr)
    runner = make_runner(
        model,
        Pictures(),
        custom_hooks=[PWSAlphaInitHook()],
        optim_wrapper=dict(optimizer=optimizer),
        **kwargs,
    )
    runner.train()
    return runner


def alphas(model):
    return {
        name: m.alpha.detach().clone()
        for name, m in model.named_modules()
        if isinstance(m, PWSConv2d) and m.alpha is not None
    }


def expected_alphas(model, x):
    """Layer by layer: sqrt(2 / Var[Y]) where the authors have it, else 1."""
    model = copy.deepcopy(model)
    backbone, block = model.backbone, model.backbone.layer1[0]
    for conv in model.modules():
        if isinstance(conv, PWSConv2d) and conv.alpha is not None:
            conv.alpha.data.fill_(1)

    def set_alpha(conv, x):
        y = conv(x)
        conv.alpha.data.fill_(math.sqrt(2 / y.var(unbiased=False)))
        return conv(x)

    with torch.no_grad():
        x = set_alpha(backbone.conv1, x).relu()
        out = block.conv2(set_alpha(block.conv1, x).relu())
        x = (out + set_alpha(block.downsample[0], x)).relu()
        set_alpha(model.head, x)
    return alphas(model)


def test_alpha_is_sqrt_2_over_the_variance_of_the_output(make_runner):
    model = Detector()
    train(make_runner, model)
    expected = expected_alphas(model, Pictures().pictures)
    actual = alphas(model)
    for name, alpha in expected.items():
        torch.testing.assert_close(actual[name], alpha, msg=lambda m, n=name: n + m)
    changed = {name for name, alpha in actual.items() if (alpha != 1).all()}
    block = 'backbone.layer1.0.'
    assert changed == {
        'backbone.conv1',
        block + 'conv1',
        block + 'downsample.0',
        'head',
    }
    with torch.no_grad():
        stem = model.backbone.conv1(Pictures().pictures)
    assert stem.var().item() == pytest.approx(2, rel=1e-2)


def test_only_before_the_first_step(make_runner):
    model = Detector()
    runner = train(make_runner, model, epochs=3)
    assert runner.iter == 3
    first = alphas(model)
    hook = next(h for h in runner.hooks if isinstance(h, PWSAlphaInitHook))
    model.backbone.conv1.weight.data.mul_(3)
    hook.before_train_iter(runner, 0, dict(x=Pictures().pictures))
    for name, alpha in alphas(model).items():
        assert torch.equal(alpha, first[name])


@pytest.mark.parametrize('with_alpha', [True, False])
def test_pretrained_alphas_are_kept(make_runner, tmp_path, with_alpha):
    source = Backbone()
    for alpha in alphas(source).values():
        assert (alpha == 1).all()  # kept means kept, even where it looks untouched
    state = source.state_dict()
    if not with_alpha:
        state = {k: v for k, v in state.items() if not k.endswith('alpha')}
    path = str(tmp_path / 'backbone.pth')
    torch.save(state, path)
    model = Detector(dict(type='Pretrained', checkpoint=path))
    train(make_runner, model)
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)
    actual = alphas(model)
    assert (actual['backbone.conv1'] == 1).all() == with_alpha
    assert (actual['head'] != 1).all()


def test_load_from_keeps_what_it_holds(make_runner, tmp_path):
    state = {k: v for k, v in Detector().state_dict().items() if 'head' not in k}
    state['backbone.layer1.0.conv1.alpha'] = torch.ones(5)  # cannot be loaded
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(state_dict=state, meta={}), path)
    model = Detector()
    train(make_runner, model, load_from=path)
    actual = alphas(model)
    assert (actual['backbone.conv1'] == 1).all()
    assert (actual['backbone.layer1.0.downsample.0'] == 1).all()
    assert (actual['backbone.layer1.0.conv1'] != 1).all()
    assert (actual['head'] != 1).all()


def test_frozen_alphas_are_kept(make_runner):
    model = Detector()
    model.backbone.conv1.requires_grad_(False)
    train(make_runner, model)
    actual = alphas(model)
    assert (actual['backbone.conv1'] == 1).all()
    assert (actual['head'] != 1).all()


def test_a_resumed_run_is_left_alone(make_runner, tmp_path):
    runner = make_runner(Detector(), Pictures())
    runner.train()  # one epoch without the hook
    model = Detector()
    runner = train(make_runner, model, epochs=2, resume=True)
    assert runner.iter == 2
    assert all((alpha == 1).all() for alpha in alphas(model).values())


def test_a_layer_without_rois_takes_its_next_application(make_runner):
    model = Detector(rois=0)
    train(make_runner, model)
    expected = expected_alphas(model, Pictures().pictures)
    torch.testing.assert_close(model.head.alpha, expected['head'])


def test_a_dead_layer_is_named(make_runner, messages):
    model = Detector()
    model.backbone.conv1.weight.data.fill_(0.5)  # constant: standardized to 0
    model.backbone._is_init = model._is_init = True
    train(make_runner, model)
    warning = next(m for m in messages if 'left alpha at 1' in m)
    assert 'backbone.conv1' in warning
    assert (model.backbone.conv1.alpha == 1).all()


def test_exclude(make_runner):
    model = Detector()
    runner = make_runner(
        model, Pictures(), custom_hooks=[PWSAlphaInitHook(exclude=['^backbone'])]
    )
    runner.train()
    assert (model.backbone.layer1[0].conv1.alpha.detach() - 1).abs().max() < 0.1
    assert (model.head.alpha != 1).all()


class FakeLoop:
    """As much of a runner as the hook looks at."""

    iter = 0

    def __init__(self, model):
        self.model = model
        self.optim_wrapper = self

    def optim_context(self, model):
        return contextlib.nullcontext()


def worker(rank, folder):
    torch.manual_seed(0)
    # One process has no RoI at all for the head.
    model = Detector()
    if rank == 1:
        model.head.forward = lambda x: x.new_zeros(0, 8, 3, 3)
    wrapped = MMDistributedDataParallel(model)
    hook = PWSAlphaInitHook()
    runner = FakeLoop(wrapped)
    hook.before_run(runner)
    hook.before_train_iter(runner, 0, dict(x=Pictures(seed=rank).pictures))
    torch.save(alphas(model), f'{folder}/{rank}.pth')


def test_processes_agree(tmp_path):
    run_on_two_processes(worker, str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for name, alpha in first.items():
        assert torch.equal(alpha, second[name]), name
    torch.manual_seed(0)
    model = Detector()
    variances = []
    for rank in range(2):
        one = expected_alphas(model, Pictures(seed=rank).pictures)
        variances.append({name: 2 / a[0].item() ** 2 for name, a in one.items()})
    stem = [v['backbone.conv1'] for v in variances]
    assert stem[0] != pytest.approx(stem[1], rel=1e-3)
    assert first['backbone.conv1'][0].item() == pytest.approx(
        math.sqrt(2 / (sum(stem) / 2)), rel=1e-4
    )
    assert first['head'].item() == pytest.approx(
        math.sqrt(2 / variances[0]['head']), rel=1e-4
    )
