import contextlib
import copy
import math

import pytest
import torch
from conftest import load_config, run_on_two_processes
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.model import BaseModel, BaseModule, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d, PWSRunner
from pws_mmdet.engine import PWSAlphaInitHook
from pws_mmdet.layers import share_filters_of_heads


class Images(Dataset):
    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = 3 * torch.randn(4, 3, 16, 16, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return dict(x=self.images[i])


class Backbone(BaseModule):
    """A stem and a block with downsampling, named as in a ResNet."""

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


def train(make_runner, model, lr=0.0, dataset=None, bound=4.0, **kwargs):
    optimizer = dict(type='SGD', lr=lr)
    runner = make_runner(
        model,
        dataset or Images(),
        custom_hooks=[PWSAlphaInitHook(bound=bound)],
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
    """Compute sqrt(2 / Var[Y]) layer by layer; 1 for layers that the authors leave."""
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
    expected = expected_alphas(model, Images().images)
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
        stem = model.backbone.conv1(Images().images)
    assert stem.var().item() == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize('scale, alpha', [(1e-4, 4.0), (100.0, 0.25)])
def test_alpha_is_bounded_and_the_next_alphas_compensate(
    make_runner, messages, scale, alpha
):
    model = Detector()
    data = Images()
    data.images *= scale
    train(make_runner, model, dataset=data)
    assert (model.backbone.conv1.alpha == alpha).all()
    warning = next(m for m in messages if 'limited alpha to 0.25 or 4' in m)
    assert 'backbone.conv1 (' in warning and 'mean and std' in warning
    assert (model.backbone.layer1[0].conv1.alpha == alpha).all()
    unbounded = copy.deepcopy(model)
    train(make_runner, unbounded, dataset=data, bound=math.inf)
    with torch.no_grad():
        stem = unbounded.backbone.conv1(data.images)
    assert stem.var().item() == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize('bound', [0.5, True, '4', None, math.nan])
def test_a_wrong_bound_is_an_error(bound):
    with pytest.raises(ValueError, match='bound must be a number of at least 1'):
        PWSAlphaInitHook(bound=bound)


def test_alpha_is_set_only_before_the_first_step(make_runner):
    model = Detector()
    runner = train(make_runner, model, epochs=3)
    assert runner.iter == 3
    first = alphas(model)
    hook = next(h for h in runner.hooks if isinstance(h, PWSAlphaInitHook))
    model.backbone.conv1.weight.data.mul_(3)
    hook.before_train_iter(runner, 0, dict(x=Images().images))
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


def test_alphas_from_load_from_are_kept(make_runner, tmp_path):
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


def test_alpha_is_set_if_the_loaded_filters_do_not_fit(make_runner, tmp_path):
    state = Detector().state_dict()
    name = 'backbone.layer1.0.conv1'
    state[f'{name}.weight'] = torch.ones(*state[f'{name}.weight'].shape[:2], 5, 5)
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(state_dict=state, meta={}), path)
    model = Detector()
    train(make_runner, model, load_from=path)
    actual = alphas(model)
    assert (actual.pop(name) != 1).all()
    assert all((alpha == 1).all() for alpha in actual.values())


def test_frozen_alphas_are_kept(make_runner):
    model = Detector()
    model.backbone.conv1.requires_grad_(False)
    train(make_runner, model)
    actual = alphas(model)
    assert (actual['backbone.conv1'] == 1).all()
    assert (actual['head'] != 1).all()


def test_a_resumed_run_keeps_its_alphas(make_runner, tmp_path):
    runner = make_runner(Detector(), Images())
    runner.train()  # one epoch without the hook
    model = Detector()
    runner = train(make_runner, model, epochs=2, resume=True)
    assert runner.iter == 2
    assert all((alpha == 1).all() for alpha in alphas(model).values())


def test_a_call_without_rois_does_not_count(make_runner):
    model = Detector(rois=0)
    train(make_runner, model)
    expected = expected_alphas(model, Images().images)
    torch.testing.assert_close(model.head.alpha, expected['head'])


def test_a_layer_with_constant_output_is_named(make_runner, messages):
    model = Detector()
    model.backbone.conv1.weight.data.fill_(0.5)  # constant: standardized to 0
    model.backbone._is_init = model._is_init = True
    train(make_runner, model)
    warning = next(m for m in messages if 'left alpha at 1' in m)
    assert 'backbone.conv1' in warning
    assert (model.backbone.conv1.alpha == 1).all()


def test_excluded_layers_keep_their_alpha(make_runner):
    model = Detector()
    runner = make_runner(
        model, Images(), custom_hooks=[PWSAlphaInitHook(exclude=['^backbone'])]
    )
    runner.train()
    assert (model.backbone.layer1[0].conv1.alpha.detach() - 1).abs().max() < 0.1
    assert (model.head.alpha != 1).all()


class Levels(BaseModule):
    """A head that applies its convolutions to feature maps of several sizes."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            PWSConv2d(3, 8, 3), nn.ReLU(), PWSConv2d(8, 8, 3), nn.ReLU()
        )

    def forward(self, maps):
        return [self.forward_single(x) for x in maps]

    def forward_single(self, x):
        return self.convs(x)


class OfLevels(BaseModel):
    def __init__(self):
        super().__init__()
        self.head = Levels()

    def forward(self, x, mode='tensor'):
        maps = [x, 2 * x[..., ::2, ::2]]
        return dict(loss=sum(0.0 * y.sum() for y in self.head(maps)))


def test_shared_filters_of_a_head(make_runner):
    """With and without sharing, outputs for the first feature map have variance 2."""
    model = OfLevels()
    state = copy.deepcopy(model.state_dict())
    found = []
    for runner_type in (Runner, PWSRunner):
        model = OfLevels()
        model.load_state_dict(state)
        model._is_init = model.head._is_init = True
        train(make_runner, model, runner_type=runner_type)
        found.append(alphas(model))
        with torch.no_grad():
            x = Images().images
            for layer in model.head.convs:
                x = layer(x)
                if isinstance(layer, PWSConv2d):
                    assert x.var(correction=0).item() == pytest.approx(2, rel=1e-3)
    for name, alpha in found[0].items():
        torch.testing.assert_close(found[1][name], alpha, rtol=0, atol=0)


def test_shared_filters_of_retinanet():
    cfg = load_config('configs/retinanet_r50_fpn_pws_1x.py').model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    cfg.bbox_head.update(in_channels=8, feat_channels=8)
    model = MODELS.build(cfg)
    model.init_weights()
    shared = copy.deepcopy(model)
    share_filters_of_heads(shared)
    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80)
    for one in (model, shared):
        torch.manual_seed(0)
        PWSAlphaInitHook().before_train_iter(FakeLoop(one), 0, batch)
    for name, alpha in alphas(model).items():
        torch.testing.assert_close(alphas(shared)[name], alpha, msg=name)
    convs = {m: name for name, m in shared.bbox_head.named_modules()}
    variances = {}

    def see(module, args, y):
        variances.setdefault(convs[module], y.var(correction=0).item())

    for conv in convs:
        if isinstance(conv, PWSConv2d):
            conv.register_forward_hook(see)
    with torch.no_grad():
        shared(**shared.data_preprocessor(batch, True), mode='tensor')
    assert variances == {
        f'{name}_convs.{i}.conv': pytest.approx(2, rel=1e-3)
        for name in ('cls', 'reg')
        for i in range(4)
    }


class SemiSupervised(BaseModel):
    """The interface that MeanTeacherHook needs."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Detector(), Detector()
        self.teacher.requires_grad_(False)

    def forward(self, x, mode='tensor'):
        self.teacher(2 * x)
        return self.student(x)


@pytest.mark.parametrize('loads', [False, True])
def test_a_teacher_gets_the_alphas_of_its_student(make_runner, tmp_path, loads):
    model = SemiSupervised()
    kwargs = {}
    if loads:
        path = str(tmp_path / 'student.pth')
        keys = [k for k in model.state_dict() if 'head' not in k]
        torch.save({k: model.state_dict()[k] for k in keys}, path)
        kwargs = dict(load_from=path)
    hook = PWSAlphaInitHook()
    runner = make_runner(
        model,
        Images(),
        custom_hooks=[dict(type='MeanTeacherHook'), hook],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        **kwargs,
    )
    runner.train()
    student, teacher = alphas(model.student), alphas(model.teacher)
    for name, alpha in student.items():
        torch.testing.assert_close(teacher[name], alpha, msg=name)
    assert (student['head'] != 1).all()
    assert (student['backbone.conv1'] == 1).all() == loads


def test_a_frozen_layer_that_is_no_copy_keeps_its_alpha(make_runner):
    model = SemiSupervised()
    train(make_runner, model)  # nothing copies the student
    assert all((alpha == 1).all() for alpha in alphas(model.teacher).values())


class TwoOptimizers(Detector):
    def train_step(self, data, optim_wrapper):
        with optim_wrapper['head'].optim_context(self):
            loss, log_vars = self.parse_losses(self(**data))
        optim_wrapper['head'].update_params(loss)
        return log_vars


def test_a_model_with_several_optimizers(make_runner):
    model = TwoOptimizers()
    parts = dict(backbone=model.backbone, head=model.head)
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.0))
        for name, part in parts.items()
    }
    runner = make_runner(
        model,
        Images(),
        custom_hooks=[PWSAlphaInitHook()],
        optim_wrapper=OptimWrapperDict(**wrappers),
    )
    runner.train()
    expected = expected_alphas(model, Images().images)
    for name, alpha in alphas(model).items():
        torch.testing.assert_close(alpha, expected[name], msg=name)


class FakeLoop:
    """The attributes of a runner that the hook uses."""

    iter = 0

    def __init__(self, model):
        self.model = model
        self.optim_wrapper = self

    def optim_context(self, model):
        return contextlib.nullcontext()


def worker(rank, folder):
    torch.manual_seed(0)
    # One process has no RoI for the head.
    model = Detector()
    if rank == 1:
        model.head.forward = lambda x: x.new_zeros(0, 8, 3, 3)
    wrapped = MMDistributedDataParallel(model)
    hook = PWSAlphaInitHook()
    runner = FakeLoop(wrapped)
    hook.before_run(runner)
    hook.before_train_iter(runner, 0, dict(x=Images(seed=rank).images))
    torch.save(alphas(model), f'{folder}/{rank}.pth')


def test_all_processes_set_the_same_alphas(tmp_path):
    run_on_two_processes(worker, str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for name, alpha in first.items():
        assert torch.equal(alpha, second[name]), name
    torch.manual_seed(0)
    model = Detector()
    variances = []
    for rank in range(2):
        one = expected_alphas(model, Images(seed=rank).images)
        variances.append({name: 2 / a[0].item() ** 2 for name, a in one.items()})
    stem = [v['backbone.conv1'] for v in variances]
    assert stem[0] != pytest.approx(stem[1], rel=1e-3)
    assert first['backbone.conv1'][0].item() == pytest.approx(
        math.sqrt(2 / (sum(stem) / 2)), rel=1e-4
    )
    assert first['head'].item() == pytest.approx(
        math.sqrt(2 / variances[0]['head']), rel=1e-4
    )
