import copy
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_on_two_processes
from mmdet.datasets import BaseDetDataset
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d
from pws_mmdet.engine import DivergenceError, DivergenceHook

EAGER = dict(backend='eager')  # torch.compile traces, but compiles nothing


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
def test_the_error_names_the_iteration_and_the_loss(make_runner, value):
    with pytest.raises(DivergenceError, match='diverged at iteration 8: ') as error:
        train(make_runner, 8, 1, value)
    assert error.value.iteration == 8
    assert 'loss_b is' in str(error.value) and 'loss_a' not in str(error.value)


def test_a_training_stops_before_the_step(make_runner):
    model = Net(8, float('nan'))
    with pytest.raises(DivergenceError):
        train(make_runner, 8, 1, model=model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Grows(BaseModel):
    """From ``bad_step`` on, the second layer has outputs that overflow."""

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


def test_the_error_names_the_first_layer_that_exploded(make_runner):
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 5, 1, model=Grows(5))
    first, layer, ways = str(error.value).splitlines()
    assert first == 'Training diverged at iteration 5: loss is inf.'
    assert layer.startswith('The output of b is the first to explode: its variance is')
    assert 'in the first step' in layer
    assert 'Try' in ways and 'gamma=0.001' in ways
    assert ways.endswith('Or clip gradients: optim_wrapper.clip_grad.max_norm=10.')
    clipped = dict(optimizer=dict(type='SGD', lr=0.01), clip_grad=dict(max_norm=35))
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 1, 1, model=Grows(1), optim_wrapper=clipped)
    assert 'The output of b' in str(error.value)
    assert 'clip' not in str(error.value)
    assert 'in the first step' not in str(error.value)


class Poisoned(Net):
    """One step writes NaN into weights that no loss depends on."""

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
    """A model whose train_step does not call parse_losses."""

    def train_step(self, data, optim_wrapper):
        losses = self(**data)
        optim_wrapper.update_params(sum(losses.values()))
        return losses


def test_a_model_with_a_training_step_of_its_own(make_runner):
    with pytest.raises(DivergenceError, match='iteration 8: loss_b is nan'):
        train(make_runner, 8, 1, model=OwnStep(8, float('nan')))


def worker(rank, path, with_box):
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
    samples = []
    if rank and with_box:
        sample = DetDataSample(
            metainfo=dict(img_path='odd.jpg'),
            gt_instances=InstanceData(bboxes=torch.ones(1, 4)),
        )
        samples.append(sample)
    hook = DivergenceHook(1)
    hook.before_train(runner)
    with pytest.raises(DivergenceError, match='iteration 3: ') as error:
        while runner.iter < 5:
            batch = dict(x=torch.ones(2, 2))
            hook.before_train_iter(runner, runner.iter, samples or batch)
            outputs = model.train_step(batch, wrapper)
            hook.after_train_iter(runner, runner.iter, batch, outputs)
            runner.iter += 1
    Path(path, str(rank)).write_text(str(error.value))


@pytest.mark.parametrize('with_box', [False, True])
def test_all_processes_stop_together(tmp_path, with_box):
    run_on_two_processes(worker, str(tmp_path), with_box)
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert 'the loss of another process' in first
    assert 'loss_b is nan' in second
    for text in (first, second):
        assert ('odd.jpg has a box without area' in text) == with_box


def test_no_hooks_stay_in_the_model(make_runner):
    runner = train(make_runner, 100, 1)
    assert not {'parse_losses', 'train_step'} & set(vars(runner.model))
    assert not any(m._forward_hooks for m in runner.model.modules())


def test_by_default_the_loss_is_checked_before_every_step(make_runner):
    model = Grows(7)
    hooks = [DivergenceHook()]
    runner = make_runner(model, Data(), epochs=2, batch_size=2, custom_hooks=hooks)
    with pytest.raises(DivergenceError, match='iteration 7: loss is inf') as error:
        runner.train()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 'The output of b is the first to explode' in str(error.value)
    assert model.step == 7 + 1  # One more pass finds the layer.


def test_weights_are_checked_at_every_interval(make_runner):
    with pytest.raises(DivergenceError, match='weights are not finite') as error:
        train(make_runner, 0, 3, model=Poisoned(), batch_size=2)
    assert error.value.iteration == 6  # NaN is written in step 4.
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 0, 2, model=Poisoned(), batch_size=2)
    assert error.value.iteration == 4


@pytest.mark.parametrize('interval', [0, -1, 2.5, True, '5'])
def test_a_wrong_interval_is_an_error(interval):
    with pytest.raises(ValueError, match='interval must be an integer of at least 1'):
        DivergenceHook(interval)


class BadStatistics(Net):
    """A branch without influence on the loss gives its BN infinite statistics."""

    def __init__(self):
        super().__init__(100, 0.0)
        self.bn = nn.BatchNorm1d(2)

    def forward(self, x, mode='tensor'):
        losses = super().forward(x)
        if self.step == 4:
            self.bn(x.detach() * 1e38 * torch.tensor([[1.0], [-9.0]]))
        return losses


def test_buffers_are_checked_before_a_checkpoint(make_runner):
    with pytest.raises(DivergenceError, match='not finite, bn.running') as error:
        train(make_runner, 0, 50, model=BadStatistics())
    assert error.value.iteration == 6


class Masked(Net):
    """It has a mask with -inf, large weights, and a NaN in the mask after one step."""

    def __init__(self, bad_step=100):
        super().__init__(100, 0.0)
        self.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
        self.great = nn.Parameter(torch.full((2,), 1e30))  # The norm overflows.
        self.spoils = bad_step

    def forward(self, x, mode='tensor'):
        losses = super().forward(x)
        if self.step == self.spoils:
            self.mask[0] = torch.nan
        return losses


def test_values_that_were_not_finite_at_the_start_do_not_count(make_runner):
    runner = train(make_runner, 0, 1, model=Masked())
    assert runner.iter == 12
    with pytest.raises(DivergenceError, match='not finite, mask') as error:
        train(make_runner, 0, 1, model=Masked(4))
    assert error.value.iteration == 4


class SavedInAStep(Net):
    """It is saved and copied during its first training step."""

    def forward(self, x, mode='tensor'):
        losses = super().forward(x)
        self.conv(x.view(-1, 2, 1, 1))
        if self.step == 1:
            file = io.BytesIO()
            torch.save(self, file)
            file.seek(0)
            copies.append(torch.load(file, weights_only=False))
            copies.append(copy.deepcopy(self))
        return losses


copies = []


@pytest.mark.parametrize('own', [False, True])
def test_the_model_can_be_saved_and_copied_in_a_step(make_runner, own):
    """The copies have the original parse_losses."""
    copies.clear()
    model = SavedInAStep(100, 1.0)
    model.conv = PWSConv2d(2, 2, 1)
    if own:
        model.parse_losses = parse_losses
    hooks = [dict(type='VarianceMonitorHook', interval=1)]
    train(make_runner, 100, 1, model=model, default_hooks=dict(variance=hooks[0]))
    assert len(copies) == 2
    for other in copies:
        loss, _ = other.parse_losses(dict(loss=torch.tensor(torch.nan)))
        assert loss.isnan()
        other(torch.ones(1, 2))
        if not own:
            assert other.parse_losses.__self__ is other
    assert ('parse_losses' in vars(model)) == own


def parse_losses(losses):
    return sum(loss for loss in losses.values()), losses


def test_a_second_training_after_one_that_failed(make_runner):
    """It checks its own steps, and no hooks stay in the model."""
    model = Net(1, float('nan'))
    with pytest.raises(DivergenceError, match='iteration 1:'):
        train(make_runner, 0, 1, model=model)
    runner = train(make_runner, 0, 1, model=model)
    assert runner.iter == 12
    assert not {'parse_losses', 'train_step'} & set(vars(model))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize('what', ['gradient', 'loss'])
def test_mixed_precision_may_skip_gradients_but_no_loss(make_runner, what):
    class Overflows(Net):
        def forward(self, x, mode='tensor'):
            losses = super().forward(x)
            if self.step == 5 and what == 'loss':
                losses['loss_b'] = losses['loss_b'] * torch.inf
            elif self.step == 5:
                losses['loss_b'].register_hook(lambda grad: grad * torch.inf)
            return losses

    model = Overflows(100, 0.0)
    wrapper = dict(type='ScalingWrapper', optimizer=dict(type='SGD', lr=0.1))
    if what == 'loss':
        with pytest.raises(DivergenceError, match='iteration 5: loss is '):
            train(make_runner, 0, 1, model=model, optim_wrapper=wrapper)
    else:
        train(make_runner, 0, 1, model=model, optim_wrapper=wrapper)
        assert model.step == 12
    assert all(torch.isfinite(p).all() for p in model.parameters())


class TwoOptimizers(Net):
    """Each optimizer has its own loss. The second loss becomes NaN."""

    def __init__(self, bad_step):
        super().__init__(bad_step, float('nan'))
        self.other = nn.Linear(2, 1)

    def train_step(self, data, optim_wrapper):
        loss, log_vars = self.parse_losses(dict(loss_fine=self.other(data['x']).sum()))
        optim_wrapper['other'].update_params(loss)
        loss, log_vars = self.parse_losses(self(**data))
        optim_wrapper['fc'].update_params(loss)
        return log_vars


def test_the_loss_of_each_optimizer_is_checked(make_runner):
    model = TwoOptimizers(5)
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(getattr(model, name).parameters(), lr=0.1))
        for name in ('other', 'fc')
    }
    with pytest.raises(DivergenceError, match='iteration 5: .*loss_b is nan'):
        train(
            make_runner, 5, 50, model=model, optim_wrapper=OptimWrapperDict(**wrappers)
        )
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_layer_with_a_large_finite_output_is_named(make_runner):
    """The output of the layer grows ten thousand times, and does not overflow."""

    class GrowsFinitely(Grows):
        def __init__(self):
            super().__init__(5, factor=100.0)

        def forward(self, x, mode='tensor'):
            losses = super().forward(x, mode)
            bad = torch.inf if self.step == 5 else 1.0
            return dict(loss=losses['loss'] * bad)

    model = GrowsFinitely()
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 5, 50, model=model)
    seen = re.search(r'The output of b .* variance is (\S+), and was', str(error.value))
    outputs = []
    model.b.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        model(torch.ones(2, 2))
    # One of two channels is 100: the variance is about 50 squared.
    assert float(seen[1]) == pytest.approx(
        outputs[0].var(correction=0).item(), rel=0.01
    )
    assert 2000 < float(seen[1]) < 3000


def test_the_search_for_the_layer_waits_for_no_other_process(make_runner):
    class Synchronized(Grows):
        def forward(self, x, mode='tensor'):
            assert self.step < 5 or not self.bn.training
            return super().forward(x, mode)

    model, hooks = Synchronized(5), [DivergenceHook()]
    runner = make_runner(model, Data(), epochs=2, batch_size=2, custom_hooks=hooks)
    model.bn = nn.SyncBatchNorm(
        2
    )  # Added now, because a runner with one process replaces it.
    with pytest.raises(DivergenceError, match='The output of b is the first'):
        runner.train()
    assert not model.bn.training


def test_compiled_steps(make_runner):
    model = Grows(5)
    with pytest.raises(DivergenceError, match='iteration 5: loss is inf') as error:
        train(make_runner, 5, 50, model=model, cfg=Config(dict(compile=EAGER)))
    assert 'The output of b is the first to explode' in str(error.value)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('warm_up', [False, True])
def test_the_advice_ignores_warm_up(make_runner, warm_up):
    scheduler = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=500)
    with pytest.raises(DivergenceError) as error:
        train(
            make_runner,
            5,
            1,
            model=Grows(5),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.01),
                paramwise_cfg=dict(custom_keys={'a.': dict(lr_mult=0.1)}),
            ),
            param_scheduler=[scheduler] if warm_up else None,
        )
    assert 'The learning rate is 0.01 and gamma' in str(error.value)


def test_the_search_for_the_layer_with_several_optimizers(make_runner):
    class Parts(Grows):
        def train_step(self, data, optim_wrapper):
            with optim_wrapper['rest'].optim_context(self):
                loss, log_vars = self.parse_losses(self(**data))
            optim_wrapper['rest'].update_params(loss)
            return log_vars

    model = Parts(5)
    parts = dict(a=[*model.a.parameters()], rest=[*model.b.parameters()])
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(part, lr=0.01))
        for name, part in parts.items()
    }
    with pytest.raises(DivergenceError, match='The output of b is the first'):
        train(
            make_runner, 5, 50, model=model, optim_wrapper=OptimWrapperDict(**wrappers)
        )


class Assigns(Grows):
    """As in YOLOX, an assigner in its head raises an error at NaN."""

    def __init__(self, bad_step, error=None):
        super().__init__(bad_step, 1e38)
        self.c.loss_by_feat = None  # This attribute marks a head.
        self.error = error

    def forward(self, x, mode='tensor'):
        self.step += 1
        x = self.a(x.view(-1, 2, 1, 1).expand(-1, -1, 4, 4))
        if self.step >= self.bad_step:
            with torch.no_grad():
                self.b.bias[0] = self.factor
        scores = (10 * self.c(10 * self.b(x))).sigmoid()
        if self.error and self.step >= 5 and mode == 'loss':
            raise self.error
        losses = nn.functional.binary_cross_entropy(scores, torch.ones_like(scores))
        return dict(loss=losses)


def test_an_error_caused_by_nan_is_a_divergence(make_runner):
    model = Assigns(5)
    with pytest.raises(DivergenceError) as error:
        train(make_runner, 5, 50, model=model)
    first, layer, ways = str(error.value).splitlines()
    assert first.startswith(
        'Training diverged at iteration 5: the outputs of c are not finite, and the '
        'step ended with RuntimeError: all elements of input should be between 0 and 1'
    )
    assert layer.startswith('The output of b is the first to explode')
    assert 'Try' in ways
    assert isinstance(error.value.__context__, RuntimeError)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_other_errors_are_not_changed(make_runner):
    with pytest.raises(KeyError, match='no such thing'):
        train(make_runner, 5, 50, model=Assigns(100, error=KeyError('no such thing')))


class Annotated(BaseDetDataset):
    """Images, one of them with a given box."""

    def __init__(self, box):
        self.box = box
        super().__init__(ann_file='none')

    def load_data_list(self):
        names = (f'{i}.jpg' for i in range(12))
        return [dict(img_path=name, height=20, width=30) for name in names]

    def __getitem__(self, i):
        box = self.box if i == 7 else [1.0, 2.0, 3.0, 4.0]
        sample = DetDataSample(
            metainfo=dict(img_path=f'{i}.jpg', ori_shape=(20, 30 + (i == 7))),
            gt_instances=InstanceData(
                bboxes=HorizontalBoxes([box]), labels=torch.zeros(1)
            ),
        )
        return dict(x=torch.ones(2), data_samples=sample)


class OfBoxes(Net):
    """Its loss has the logarithms of box sizes, as that of a detector."""

    def __init__(self):
        super().__init__(100, 0.0)

    def forward(self, x, data_samples, mode='tensor'):
        boxes = torch.cat([s.gt_instances.bboxes.tensor for s in data_samples])
        losses = super().forward(torch.stack(x))
        losses['loss_b'] = losses['loss_b'] + (boxes[:, 2:] - boxes[:, :2]).log().sum()
        return losses


@pytest.mark.parametrize('end, kind', [(5.0, 'without area'), (torch.nan, 'finite')])
def test_wrong_boxes_are_named_in_place_of_a_learning_rate(make_runner, end, kind):
    runner = make_runner(
        OfBoxes(),
        Annotated([5.0, 6.0, end, 9.0]),
        custom_hooks=[DivergenceHook()],
        loader=dict(collate_fn=dict(type='pseudo_collate')),
    )
    with pytest.raises(DivergenceError) as error:
        runner.train()
    first, images, advice = str(error.value).splitlines()
    assert 'loss_b is ' in first
    assert images.startswith('7.jpg has a box ') and kind in images
    assert '7.jpg is 31 x 20 pixels' in images and '30 x 20 in its ann' in images
    assert advice.startswith('Correct these images first')
