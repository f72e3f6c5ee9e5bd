import copy
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_on_two_processes
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS, VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d
from pws_mmdet.analysis import STATISTICS, read_record
from pws_mmdet.engine import VarianceMonitorHook
from pws_mmdet.layers import WNConv2d


class Images(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return dict(x=1 + torch.randn(3, 8, 8, generator=generator))


class Net(BaseModel):
    """Plain, frozen, PWS, WN and unused convolutions, and one that is used twice."""

    def __init__(self, checkpoints=False):
        super().__init__()
        self.plain = nn.Conv2d(3, 4, 3)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.pws = PWSConv2d(4, 6, 3, padding=1, gamma=0.01)
        self.wn = WNConv2d(6, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 1)
        self.unused = nn.Conv2d(2, 2, 1)
        self.checkpoints = checkpoints

    def init_weights(self):
        """Keep the weights that the test has set."""

    def forward(self, x, mode='tensor'):
        x = self.norm(self.frozen(self.plain(x).relu()))
        if self.checkpoints:
            x = torch.utils.checkpoint.checkpoint(self.pws, x, use_reentrant=True)
        else:
            x = self.pws(x)
        x = self.wn(x.relu())
        return dict(loss=(self.twice(self.twice(x.relu())) ** 2).mean())


def train(make_runner, model=None, wrapper=None, hook=None, **kwargs):
    torch.manual_seed(0)
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01)
    runner = make_runner(
        model or Net(),
        Images(),
        custom_hooks=[hook or VarianceMonitorHook(interval=1)],
        optim_wrapper={'optimizer': optimizer, **(wrapper or {})},
        loader=dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        **kwargs,
    )
    runner.train()
    return runner


def array(tensor):
    return tensor.detach().double().numpy()


def by_hand(conv, before, after, inputs, outputs, grad):
    """Compute the statistics of a layer from their definitions."""

    def shift(old, new):
        return np.var([n * (a - b).mean() for a, b in zip(old, new, strict=True)])

    w, new = array(before.weight), array(after.weight)
    n = w[0].size
    gamma = getattr(conv, 'gamma', 0)
    ratios = [np.var(b) / np.var(a) for a, b in zip(w, new, strict=True)]

    def filters(layer):
        if not isinstance(layer, PWSConv2d | WNConv2d):
            return array(layer.weight)
        return array(layer.effective_weight())

    f = filters(before)
    x = np.concatenate([array(x).ravel() for x in inputs])
    y = np.concatenate([array(y).ravel() for y in outputs])
    spread = np.var([n * o.mean() for o in f])
    expected = dict(
        var_ratio=np.mean(ratios),
        var_ratio_min=np.min(ratios),
        var_ratio_max=np.max(ratios),
        relative_step=max(
            np.linalg.norm(a - b) / np.linalg.norm(a)
            for a, b in zip(w, new, strict=True)
        ),
        shift=shift(w, new),
        scaled_step=max(
            np.linalg.norm(a - b) / np.linalg.norm(a) * math.sqrt(np.var(a) + gamma)
            for a, b in zip(w, new, strict=True)
        ),
        var_w_min=min(np.var(o) for o in w),
        inv_std_max=max(1 / math.sqrt(np.var(o) + gamma) for o in w),
        grad_norm=math.nan if grad is None else math.sqrt((array(grad) ** 2).sum()),
        alpha_min=math.nan,
        alpha_max=math.nan,
        mean_x_squared=x.mean() ** 2,
        mean_x_share=x.mean() ** 2 / (x**2).mean(),
        mean_spread=spread,
        var_y=y.var(),
        var_y_eq5=n * np.mean([np.var(o) for o in f]) * (x**2).mean()
        + x.mean() ** 2 * spread,
        var_y_eq6=2 * (x**2).mean() + x.mean() ** 2 * spread,
    )
    if isinstance(conv, PWSConv2d):
        # Alphas are those after the step; inputs are those before it.
        expected['alpha_min'] = after.alpha.min().item()
        expected['alpha_max'] = after.alpha.max().item()
    return expected


def replay(model, batches, clip=None, accumulate=1):
    """Train without MMEngine, and compute the statistics: a dict for each step."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01
    )
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    seen = {name: ([], []) for name in convs}
    for name, conv in convs.items():

        def see(_, args, output, name=name):
            if torch.is_grad_enabled():
                seen[name][0].append(args[0])
                seen[name][1].append(output)

        conv.register_forward_hook(see)
    steps = []
    for i, x in enumerate(batches, 1):
        (model(x)['loss'] / accumulate).backward()
        if i % accumulate:
            continue
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        grads = {name: conv.weight.grad for name, conv in convs.items()}
        before = copy.deepcopy(convs)
        optimizer.step()
        steps.append(
            {
                name: by_hand(conv, before[name], conv, *seen[name], grads[name])
                for name, conv in convs.items()
                if seen[name][0]
            }
        )
        optimizer.zero_grad()
        for inputs, outputs in seen.values():
            inputs.clear()
            outputs.clear()
    return steps


def batches_of(size):
    xs = [Images()[i]['x'] for i in range(8)]
    return [torch.stack(xs[i : i + size]) for i in range(0, 8, size)]


def check(record, expected, rtol=2e-3):
    assert set(record.values) == set(STATISTICS)
    assert len(record.steps) == len(expected)
    names = [layer.name for layer in record.layers]
    for i, step in enumerate(expected):
        for layer, statistics in step.items():
            for name, value in statistics.items():
                actual = record.values[name][i, names.index(layer)]
                np.testing.assert_allclose(
                    actual, value, rtol, 1e-9, err_msg=f'{layer} {name} {i}'
                )


@pytest.mark.parametrize('checkpoints', [False, True])
def test_statistics_equal_those_of_a_plain_training_loop(make_runner, checkpoints):
    torch.manual_seed(0)
    model = Net(checkpoints)
    expected = replay(model, batches_of(2))
    runner = train(make_runner, model, batch_size=2)
    record = read_record(runner.work_dir)
    assert record.steps.tolist() == [1, 2, 3, 4]
    assert np.allclose(record.lr, 0.1)
    check(record, expected)
    assert np.isfinite(record.loss).all()
    # The paper's claim: the means of PWS filters stay close to each other.
    index = [layer.name for layer in record.layers].index('pws')
    assert (record.values['mean_spread'][:, index] < 1e-10).all()
    assert (record.values['mean_spread'][:, 0] > 1e-6).all()


def test_accumulated_and_clipped_gradients(make_runner):
    torch.manual_seed(0)
    model = Net()
    expected = replay(model, batches_of(2), clip=0.01, accumulate=2)
    wrapper = dict(accumulative_counts=2, clip_grad=dict(max_norm=0.01))
    runner = train(make_runner, model, wrapper, batch_size=2)
    record = read_record(runner.work_dir)
    assert record.steps.tolist() == [2, 4]
    check(record, expected)


@OPTIM_WRAPPERS.register_module(force=True)
class ScalingWrapper(OptimWrapper):
    """Scales losses as AmpOptimWrapper does, on a CPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)

    def backward(self, loss, **kwargs):
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_gradients_are_unscaled(make_runner):
    torch.manual_seed(0)
    model = Net()
    expected = replay(model, batches_of(4))
    runner = train(make_runner, model, dict(type='ScalingWrapper'), batch_size=4)
    check(read_record(runner.work_dir), expected)


def test_a_step_that_amp_skips_has_no_statistics_of_the_step(make_runner):
    class Overflow(Net):
        def forward(self, x, mode='tensor'):
            return dict(loss=super().forward(x)['loss'] * math.inf)

    runner = train(make_runner, Overflow(), dict(type='ScalingWrapper'))
    record = read_record(runner.work_dir)
    assert np.isnan(record.loss).all()
    assert np.isnan(record.values['shift']).all()
    assert np.isfinite(record.values['var_y'][:, 0]).all()


def test_unused_and_frozen_layers(make_runner):
    record = read_record(train(make_runner).work_dir)
    at = {layer.name: i for i, layer in enumerate(record.layers)}
    assert np.isnan(record.values['var_y'][:, at['unused']]).all()
    assert [layer.name for layer in record.layers if layer.frozen] == ['frozen']
    assert (record.values['shift'][:, at['frozen']] == 0).all()
    assert (record.values['var_ratio'][:, at['frozen']] == 1).all()
    assert np.isnan(record.values['grad_norm'][:, at['frozen']]).all()


def test_no_hooks_stay_between_recorded_steps(make_runner):
    counts = []

    class Counting(Net):
        def forward(self, x, mode='tensor'):
            counts.append(sum(len(m._forward_hooks) for m in self.modules()))
            return super().forward(x)

    runner = train(
        make_runner, Counting(), hook=VarianceMonitorHook(3), batch_size=1, epochs=1
    )
    assert counts == [6, 0, 6, 0, 0, 6, 0, 0]
    assert read_record(runner.work_dir).steps.tolist() == [1, 3, 6]
    assert not runner.optim_wrapper.optimizer._optimizer_step_post_hooks


def test_layers_are_chosen_by_regular_expressions(make_runner):
    hook = VarianceMonitorHook(1, layers=[r'^p', 'twice'])
    record = read_record(train(make_runner, hook=hook).work_dir)
    assert [layer.name for layer in record.layers] == ['plain', 'pws', 'twice']
    with pytest.raises(ValueError, match=r"no convolution matches 'plane'.*plain"):
        train(make_runner, hook=VarianceMonitorHook(1, layers=['plane']))


@pytest.mark.parametrize('interval', [0, -1, 2.5, True, '5'])
def test_a_wrong_interval_is_an_error(interval):
    with pytest.raises(ValueError, match='interval must be an integer of at least 1'):
        VarianceMonitorHook(interval)


@pytest.mark.parametrize(
    'layers, message',
    [
        ('nek', "layers must be a list of regular expressions, .* got 'nek'"),
        ([], r'layers must be a list of regular expressions, .* got \[\]'),
        (['['], r"layers: '\[' is no regular expression: unterminated"),
        ([3], 'layers: 3 is no regular expression'),
    ],
)
def test_wrong_expressions_are_an_error(layers, message):
    with pytest.raises(ValueError, match=message):
        VarianceMonitorHook(layers=layers)


def test_a_model_without_convolutions_is_an_error(make_runner):
    class Linear(BaseModel):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x, mode='tensor'):
            return dict(loss=self.fc(x).pow(2).mean())

    with pytest.raises(ValueError, match='the model has no convolution'):
        train(make_runner, Linear())


@pytest.mark.parametrize('clip', [None, dict(max_norm=0.01)])
def test_a_fused_optimizer_that_undoes_the_loss_scaling_itself(make_runner, clip):
    records = []
    for fused in (False, True):
        torch.manual_seed(0)
        optimizer = dict(type='SGD', lr=0.1, fused=fused)
        wrapper = dict(type='ScalingWrapper', optimizer=optimizer, clip_grad=clip)
        runner = train(make_runner, Net(), wrapper, epochs=1)
        records.append(read_record(runner.work_dir))
        shutil.rmtree(runner.work_dir)
    for name in ('grad_norm', 'shift'):
        np.testing.assert_allclose(*(r.values[name] for r in records), 1e-3, 1e-9)
    assert records[0].values['grad_norm'][0, 0] > 0


class Pair(BaseModel):
    """Two convolutions of a given kind."""

    def __init__(self, make=nn.Conv2d):
        super().__init__()
        self.a, self.b = make(3, 4, 3), make(4, 4, 3)

    def init_weights(self):
        """Keep the weights that the test has set."""

    def forward(self, x, mode='tensor'):
        return dict(loss=self.b(input=self.a(x).relu()).pow(2).mean())


def test_an_input_given_as_a_keyword_argument(make_runner):
    model = Pair()
    expected = [(b, model.a(b).relu()) for b in batches_of(8)]
    values = read_record(train(make_runner, model, batch_size=8).work_dir).values
    [(x, y)] = expected
    for i, value in enumerate((x, y)):
        mean = value.mean().item() ** 2
        assert values['mean_x_squared'][0, i] == pytest.approx(mean, rel=1e-3)


class TwoOptimizers(Pair):
    def train_step(self, data, optim_wrapper):
        for name in ('b', 'a'):
            loss, log_vars = self.parse_losses(self(**data))
            optim_wrapper[name].update_params(loss)
        return log_vars


def test_a_model_with_several_optimizers(make_runner):
    model = TwoOptimizers()
    wrapper = OptimWrapperDict(
        a=OptimWrapper(torch.optim.SGD(model.a.parameters(), lr=0.1)),
        b=OptimWrapper(torch.optim.Adam(model.b.parameters(), lr=0.01)),
    )
    before = copy.deepcopy(model)
    hook = VarianceMonitorHook(interval=1)
    runner = make_runner(
        model, Images(), batch_size=8, custom_hooks=[hook], optim_wrapper=wrapper
    )
    runner.train()
    values = read_record(runner.work_dir).values
    for i, name in enumerate('ab'):
        old, new = (array(getattr(net, name).weight) for net in (before, model))
        shift = np.var((new - old).sum((1, 2, 3)))
        assert values['shift'][0, i] == pytest.approx(shift, rel=1e-3)


def weight_norm(*args):
    return nn.utils.weight_norm(nn.Conv2d(*args))


def spectral_norm(*args):
    return nn.utils.spectral_norm(nn.Conv2d(*args))


def parametrized_weight_norm(*args):
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(*args))


def parametrized_spectral_norm(*args):
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(*args))


def pruned(*args):
    return nn.utils.prune.random_unstructured(nn.Conv2d(*args), 'weight', 0.5)


MAKERS = [
    weight_norm,
    spectral_norm,
    parametrized_weight_norm,
    parametrized_spectral_norm,
    pruned,
    ConvWS2d,
    ConvAWS2d,
]


@pytest.mark.parametrize('make', MAKERS, ids=lambda make: make.__name__)
def test_filters_of_other_reparametrized_convolutions(make_runner, make):
    """Filters are found from outputs for unit inputs, a step from two networks."""

    class Net(Pair):
        def forward(self, x, mode='tensor'):
            return dict(loss=self.b(self.a(x).relu()).pow(2).mean())

    def filters(conv):
        n = conv.in_channels * 9
        units = torch.eye(n).view(n, conv.in_channels, 3, 3)
        with torch.no_grad():
            applied = (conv(units).flatten(1) - conv.bias).T.numpy()
        # mmcv standardizes filters in each pass; its parameter is W.
        is_own = make not in (ConvWS2d, ConvAWS2d)
        return applied, applied if is_own else array(conv.weight.flatten(1).clone())

    model = Net(make)
    for _ in range(50):  # spectral norms iterate
        model(torch.randn(2, 3, 8, 8))
    model.eval()
    before = [filters(conv) for conv in (model.a, model.b)]
    runner = train(make_runner, model, batch_size=8)
    values = read_record(runner.work_dir).values
    model.eval()
    after = [filters(conv) for conv in (model.a, model.b)]
    for i, ((applied, old), (_, new)) in enumerate(zip(before, after, strict=True)):
        spread, shift = np.var(applied.sum(1)), np.var((old - new).sum(1))
        assert values['mean_spread'][0, i] == pytest.approx(spread, rel=0.02, abs=1e-9)
        assert values['shift'][0, i] == pytest.approx(shift, rel=0.02)
        assert values['grad_norm'][0, i] > 0


def test_the_training_has_the_same_weights_without_the_hook(make_runner):
    weights = []
    for interval in (1, 1000):
        torch.manual_seed(0)
        model = Pair(parametrized_spectral_norm)
        model.b = nn.Conv2d(4, 4, 3)
        train(make_runner, model, hook=VarianceMonitorHook(interval), batch_size=2)
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_warning_tells_that_a_compiled_model_is_not_seen(make_runner, messages):
    cfg = Config(dict(compile=dict(backend='eager')))
    runner = train(make_runner, batch_size=2, cfg=cfg)
    record = read_record(runner.work_dir)
    assert len(record.steps) == 4
    assert np.isnan(record.values['var_y']).all()
    assert np.isfinite(record.values['shift'][:, 0]).all()
    warnings = [text for text in messages if 'saw no input or output' in text]
    assert len(warnings) == 1 and 'compiled' in warnings[0]


@VISBACKENDS.register_module(force=True)
class Collector(BaseVisBackend):
    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self

    def add_scalars(self, scalars, step=0, file_path=None, **kwargs):
        self.steps = {**getattr(self, 'steps', {}), step: scalars}


def test_statistics_go_to_visualizers_and_not_to_scalars_json(make_runner):
    visualizer = dict(
        type='Visualizer',
        vis_backends=[
            dict(type='LocalVisBackend'),
            dict(type='Collector', save_dir='unused'),
        ],
    )
    runner = train(make_runner, visualizer=visualizer)
    record = read_record(runner.work_dir)
    steps = runner.visualizer.get_backend('Collector').steps
    at = [layer.name for layer in record.layers].index('pws')
    for i, step in enumerate(record.steps):
        assert steps[step]['variance/var_y/pws'] == pytest.approx(
            record.values['var_y'][i, at], rel=1e-5
        )
    assert 'variance/var_y/unused' not in steps[1]
    [log] = record.path.glob('*/vis_data/scalars.json')
    assert 'variance' not in log.read_text()


def test_a_resumed_training_appends_to_its_record(make_runner):
    train(make_runner, epochs=1)
    runner = train(make_runner, epochs=2, resume=True)
    assert read_record(runner.work_dir).steps.tolist() == [1, 2, 3, 4]


class Interrupted(Net):
    """Its first step ends with an interrupt."""

    has_begun = False

    def forward(self, x, mode='tensor'):
        losses = super().forward(x)
        if not self.has_begun:
            self.has_begun = True
            raise KeyboardInterrupt
        return losses


def test_a_second_training_after_one_that_was_interrupted(make_runner):
    """The record has only its own steps, and no hooks stay in the model."""
    torch.manual_seed(0)
    model, hook = Interrupted(), VarianceMonitorHook(interval=1)
    expected = replay(copy.deepcopy(model).apply(begin), batches_of(4))
    with pytest.raises(KeyboardInterrupt):
        train(make_runner, model, hook=hook)
    runner = train(make_runner, model, hook=hook)
    check(read_record(runner.work_dir), expected)
    assert not any(m._forward_hooks for m in model.modules())


def begin(module):
    module.has_begun = True


class NormFree(Net):
    """All its parts are used, and none depends on other images of the batch."""

    def __init__(self):
        super().__init__()
        self.unused = self.norm = nn.Identity()


def worker(rank, path):
    torch.manual_seed(0)
    model = MMDistributedDataParallel(NormFree())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01
    )
    wrapper = OptimWrapper(optimizer)
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        log_dir=path,
        iter=0,
        visualizer=SimpleNamespace(_vis_backends={}),
    )
    hook = VarianceMonitorHook(1)
    hook.before_run(runner)
    hook.before_train(runner)
    for batch in batches_of(2):
        hook.before_train_iter(runner, runner.iter)
        outputs = model.train_step(dict(x=batch[rank : rank + 1]), wrapper)
        hook.after_train_iter(runner, runner.iter, outputs=outputs)
        runner.iter += 1


def test_two_processes_record_what_one_process_would(tmp_path):
    torch.manual_seed(0)
    expected = replay(NormFree(), batches_of(2))
    run_on_two_processes(worker, str(tmp_path / 'log'))
    check(read_record(tmp_path), expected)
