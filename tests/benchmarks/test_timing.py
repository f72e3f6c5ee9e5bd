"""Speed and memory of steps."""

import math

import pytest
import timing
import torch
from detector import Detector
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from timing import Contender

from pws_mmdet import PWSConv2d
from pws_mmdet.engine.hooks import variance

BATCH = 2
CPU = torch.device('cpu')


@pytest.fixture
def build(root):
    """Build the detector of a config for tiny images."""

    def build_detector(name, seed=0, **kwargs):
        path = root / f'configs/mini/{name}_digits.py'
        cfg = Config.fromfile(path)
        detector = Detector(str(path), cfg, BATCH, (64, 64), **kwargs)
        detector.build(CPU, num_boxes=3, seed=seed)
        return detector

    return build_detector


class Scripted(Contender):
    """Its steps take the given seconds."""

    device = CPU

    def __init__(self, clock, name, seconds, batch_size=1, loss=1.0):
        super().__init__(name, batch_size, (8, 8))
        self.clock = clock
        self.script = iter(seconds)
        self.loss = loss

    def run(self):
        self.clock.order += self.name
        self.clock.now += next(self.script)
        return self.loss


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0
        order = ''

    monkeypatch.setattr(timing, 'perf_counter', lambda: Clock.now)
    return Clock


def take_turns(*contenders, rounds, warmup=0):
    assert [*timing.take_turns(contenders, range(rounds), warmup)] == [*range(rounds)]


def test_each_round_has_a_step_of_each_in_another_order(clock):
    contenders = [Scripted(clock, name, [1] * 10) for name in 'ABC']
    take_turns(*contenders, rounds=10)
    rounds = [clock.order[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(names) == ['A', 'B', 'C'] for names in rounds)
    assert len(set(rounds)) > 3


def test_ratios_are_of_rounds(clock):
    first = Scripted(clock, 'A', [50, 1, 2, 9])
    second = Scripted(clock, 'B', [70, 2, 8, 3])
    take_turns(first, second, rounds=4, warmup=1)
    assert first.seconds == [1, 2, 9]
    assert second.seconds == [2, 8, 3]
    assert first.images_per_second() == 1 / 2
    assert second.images_per_second() == 1 / 3
    # The ratio is the median of 1/2, 2/8 and 9/3. It is not 2/3, that of the medians.
    assert [c.ratio(first) for c in (first, second)] == [1, 1 / 2]


def test_speed_is_in_images(clock):
    first = Scripted(clock, 'A', [2], batch_size=4)
    second = Scripted(clock, 'B', [2], batch_size=8)
    take_turns(first, second, rounds=1)
    assert [c.images_per_second() for c in (first, second)] == [2, 4]
    assert [c.ratio(first) for c in (first, second)] == [1, 2]


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_only_its_own_steps(clock, loss):
    first = Scripted(clock, 'A', [1, 1])
    second = Scripted(clock, 'B', [1, 1], loss=loss)
    take_turns(first, second, rounds=2)
    assert sorted(clock.order) == ['A', 'A', 'B']
    assert first.error is None and first.ratio(first) == 1
    assert math.isnan(second.ratio(first)) and math.isnan(second.images_per_second())
    assert f'the loss is {loss}' in second.error


def test_every_step_is_watched(build, monkeypatch):
    steps = []
    write_step = variance.write_step
    monkeypatch.setattr(
        variance,
        'write_step',
        lambda path, step, *args: steps.append(step) or write_step(path, step, *args),
    )
    detector = build('ssd96_vgg16_pws', watched=True)
    assert detector.step() > 0 and detector.step() > 0
    assert steps == [1, 2]


def test_a_step_trains_and_leaves_the_weights(build):
    detector = build('ssd96_vgg16_pws')
    weights = [p.detach().clone() for p in detector.model.parameters()]
    detector.step()
    for before, after in zip(weights, detector.model.parameters(), strict=True):
        assert torch.equal(before, after)
    momenta = [state['momentum_buffer'] for state in detector.optimizer.state.values()]
    assert len(momenta) == len(weights)
    assert any(momentum.any() for momentum in momenta)


@pytest.mark.parametrize('name', ['ssd96_vgg16_pws', 'mask_rcnn_r18_fpn_pws'])
def test_inference_is_a_forward_pass_of_plain_convolutions(build, name):
    detector = build(name, inference=True)
    assert not any(isinstance(m, PWSConv2d) for m in detector.model.modules())
    before = [p.clone() for p in detector.model.parameters()]
    assert detector.step() > 0 and detector.measure_memory() > 0
    for old, new in zip(before, detector.model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_the_seed_decides_weights_and_images(build):
    def everything(seed):
        detector = build('ssd96_vgg16_pws', seed=seed)
        boxes = [s.gt_instances.bboxes for s in detector.batch['data_samples']]
        weights = list(detector.model.parameters())
        return torch.cat([t.flatten() for t in (*weights, *boxes)])

    assert torch.equal(everything(3), everything(3))
    assert not torch.equal(everything(3), everything(4))


def test_instance_segmentation_gets_masks_of_its_objects(build):
    detector = build('mask_rcnn_r18_fpn_pws')
    for sample in detector.batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        assert boxes.shape == (3, 4)
        assert boxes.min() >= 0
        assert boxes.max() <= 64
        masks = sample.gt_instances.masks.get_bboxes('hbox').tensor
        torch.testing.assert_close(masks, boxes.floor(), atol=0, rtol=0)
        assert sample.gt_instances.labels.max() < 10
    detector.step()


class TestMemory:
    def test_peak_of_a_function(self):
        def allocate():
            a, b = torch.empty(2**20), torch.empty(2**20)
            del a
            return b, torch.empty(2**19)

        peak = timing.step_memory(allocate, CPU)
        assert peak == 2 * 2**20 * 4

    def test_peak_of_a_function_on_a_gpu(self, monkeypatch):
        """It is the peak of the allocator minus the memory before."""
        events = iter([700, None, 1000])
        for name in ('memory_allocated', 'reset_peak_memory_stats'):
            monkeypatch.setattr(torch.cuda, name, lambda device: next(events))
        monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda d: next(events))
        device = torch.device('cuda')
        assert timing.step_memory(lambda: None, device) == 300

    def test_counts_weights_momenta_and_activations(self, build):
        detector = build('ssd96_vgg16_pws')
        detector.step()
        weights = sum(p.nbytes for p in detector.model.parameters())
        one = detector.measure_memory()
        # Weights, momenta, and the gradients of the step.
        assert one > 3 * weights
        # Twice the images take twice the activations, and as much of everything else.
        for key, values in detector.batch.items():
            detector.batch[key] = values * 2
        two = detector.measure_memory()
        assert two > one
        assert two < 2 * one

    def test_does_not_count_other_detectors(self, build):
        detector = build('ssd96_vgg16_bn')
        detector.step()
        alone = detector.measure_memory()
        other = build('ssd96_vgg16_bn')
        other.step()
        assert detector.measure_memory() == pytest.approx(alone, rel=0.01)


def test_weights_are_random(root, monkeypatch):
    """The config names a checkpoint, but nothing is read, downloaded or converted."""
    for name in ('load_checkpoint', '_get_checkpoint_loader'):
        monkeypatch.setattr(CheckpointLoader, name, None)
    cfg = Config.fromfile(root / 'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py')
    assert cfg.model.backbone.init_cfg.checkpoint
    cfg.model.backbone.update(depth=18, base_channels=8)
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    Detector('from_bn', cfg, 1, (64, 64), inference=True).build(CPU)


@pytest.mark.parametrize(
    'name, size',
    [
        ('ssd320_vgg16_pws_1x', (320, 320)),
        ('mask_rcnn_r50_fpn_pws_1x', (800, 1333)),  # height first
    ],
)
def test_default_size_is_the_configs(root, name, size):
    cfg = Config.fromfile(root / f'configs/{name}.py')
    assert Detector(name, cfg).image_size == size
