"""Tests of tools/analysis_tools/train_speed.py."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

import pws_mmdet
from pws_mmdet import PWSConv2d

BATCH = 2


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/analysis_tools/train_speed.py')


@pytest.fixture
def main(program, monkeypatch):
    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['train_speed.py', *map(str, args)])
        program.main()

    return run_main


@pytest.fixture(scope='session')
def configs(root):
    return [root / f'configs/mini/ssd96_vgg16_{n}_digits.py' for n in ('pws', 'bn')]


@pytest.fixture
def build(program, root):
    """Build the detector of a config for tiny pictures."""

    def build_trainee(name, **kwargs):
        path = root / f'configs/mini/{name}_digits.py'
        trainee = program.Trainee(str(path), Config.fromfile(path), BATCH, (64, 64))
        options = dict(device=torch.device('cpu'), num_boxes=3, amp=False, seed=0)
        trainee.build(**{**options, **kwargs})
        return trainee

    return build_trainee


def test_table_and_json(main, configs, tmp_path, capsys):
    out = tmp_path / 'new' / 'speed.json'
    options = ['--batch-size', BATCH, '--steps', 2, '--warmup', 1, '--device', 'cpu']
    main(*configs, *options, '--seed', 5, '--out', out)
    table = capsys.readouterr().out.splitlines()
    report = json.loads(out.read_text())

    assert '--seed 5' in report['command']
    assert report['seed'] == 5
    assert report['steps'] == 2
    assert report['warmup'] == 1
    assert report['device'] == 'cpu'
    assert report['gpu'] is None
    assert report['cpu']
    assert report['threads'] == torch.get_num_threads()
    assert report['versions']['torch'] == torch.__version__
    assert report['date'].startswith('20')
    for path, row in zip(configs, report['results'], strict=True):
        assert row['config'] == str(path)
        assert row['batch_size'] == BATCH
        assert row['image_size'] == [96, 96]  # of the config
        assert row['error'] is None
        assert len(row['seconds']) == 2
        mean = sum(row['seconds']) / 2  # the median of two
        assert row['images_per_second'] == pytest.approx(BATCH / mean)
        shown = next(line for line in table if line.startswith(path.stem))
        figures = [row['images_per_second'], row['ratio'], row['peak_memory_mib']]
        for text, figure in zip(shown.split()[-3:], figures, strict=True):
            assert float(text) == pytest.approx(figure, abs=0.051)
    assert report['results'][0]['ratio'] == 1


def test_watched_steps_stand_beside_the_others(main, configs, tmp_path, capsys):
    out = tmp_path / 'speed.json'
    options = ['--batch-size', BATCH, '--steps', 2, '--warmup', 1, '--device', 'cpu']
    main(configs[0], *options, '--watched', '--out', out)
    plain, watched = json.loads(out.read_text())['results']
    assert not plain['watched'] and watched['watched']
    assert watched['error'] is None and len(watched['seconds']) == 2
    assert f'{configs[0].stem}, watched' in capsys.readouterr().out


def test_every_step_is_watched(program, root, monkeypatch):
    steps = []
    write_step = pws_mmdet.engine.variance_hook.write_step
    monkeypatch.setattr(
        'pws_mmdet.engine.variance_hook.write_step',
        lambda path, step, *args: steps.append(step) or write_step(path, step, *args),
    )
    path = root / 'configs/mini/ssd96_vgg16_pws_digits.py'
    cfg = Config.fromfile(path)
    trainee = program.Trainee(str(path), cfg, BATCH, (64, 64), watched=True)
    trainee.build(torch.device('cpu'), num_boxes=3, amp=False, seed=0)
    assert trainee.step() > 0 and trainee.step() > 0
    assert steps == [1, 2]


@pytest.fixture
def scripted(program, monkeypatch):
    """Trainees whose steps take the given seconds, and the order of their steps."""
    now = [0.0]
    order = []
    monkeypatch.setattr(program, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(program.Trainee, 'measure_memory', lambda self: 2**20)

    def make(name, seconds, batch_size=1, loss=1.0):
        steps = iter(seconds)

        def train_step(batch, optim_wrapper):
            order.append(name)
            now[0] += next(steps)
            return dict(loss=torch.tensor(loss))

        def build(device, *_):
            trainee.device = device
            trainee.batch = trainee.optim_wrapper = None
            trainee.model = SimpleNamespace(train_step=train_step)

        trainee = program.Trainee(name, Config(), batch_size, (8, 8))
        trainee.build = build
        return trainee

    def measure(*trainees, steps, warmup=0):
        rows = program.measure(
            trainees,
            steps=steps,
            warmup=warmup,
            device=torch.device('cpu'),
            num_boxes=1,
            amp=False,
            seed=0,
        )
        return rows, ''.join(order)

    return SimpleNamespace(make=make, measure=measure)


def test_steps_alternate_and_ratios_are_of_rounds(scripted):
    first = scripted.make('A', [50, 1, 2, 9])
    second = scripted.make('B', [70, 2, 8, 3])
    rows, order = scripted.measure(first, second, steps=3, warmup=1)
    assert order == 'ABABABAB'
    assert [row['seconds'] for row in rows] == [[1, 2, 9], [2, 8, 3]]
    assert [row['images_per_second'] for row in rows] == [1 / 2, 1 / 3]
    # the median of 1/2, 2/8 and 9/3, and not 2/3
    assert [row['ratio'] for row in rows] == [1, 1 / 2]


def test_speed_is_in_images(scripted):
    first = scripted.make('A', [2], batch_size=4)
    second = scripted.make('B', [2], batch_size=8)
    rows, _ = scripted.measure(first, second, steps=1)
    assert [row['images_per_second'] for row in rows] == [2, 4]
    assert [row['ratio'] for row in rows] == [1, 2]


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_only_its_config(program, scripted, loss):
    first = scripted.make('A', [1, 1])
    second = scripted.make('B', [1, 1], loss=loss)
    rows, order = scripted.measure(first, second, steps=2)
    assert order == 'ABA'
    assert rows[0]['error'] is None
    assert rows[0]['ratio'] == 1
    for key in ('images_per_second', 'ratio', 'peak_memory_mib'):
        assert math.isnan(rows[1][key])
    assert f'the loss is {loss}' in program.format_table(rows).splitlines()[-1]


def test_a_config_that_raises_ends_only_itself(main, configs, tmp_path, capsys):
    # A single picture of 32x32 pixels ends as a single value per channel, which
    # batch normalization refuses.
    out = tmp_path / 'speed.json'
    options = ['--batch-size', 1, '--image-size', 32, 32, '--steps', 1, '--warmup', 1]
    main(*reversed(configs), *options, '--device', 'cpu', '--out', out)
    bn, pws = json.loads(out.read_text())['results']
    assert 'more than 1 value per channel' in bn['error']
    assert bn['images_per_second'] is bn['ratio'] is bn['peak_memory_mib'] is None
    assert pws['images_per_second'] > 0
    assert pws['ratio'] is None  # there is nothing to compare with
    assert bn['error'] in capsys.readouterr().out

    with pytest.raises(SystemExit) as e:  # none could be measured
        main(configs[1], *options, '--device', 'cpu')
    assert e.value.code == 1


def test_a_step_trains_and_leaves_the_weights(build):
    trainee = build('ssd96_vgg16_pws')
    weights = [p.detach().clone() for p in trainee.model.parameters()]
    trainee.step()
    for before, after in zip(weights, trainee.model.parameters(), strict=True):
        assert torch.equal(before, after)
    momenta = [
        state['momentum_buffer']
        for state in trainee.optim_wrapper.optimizer.state.values()
    ]
    assert len(momenta) == len(weights)
    assert any(momentum.any() for momentum in momenta)


@pytest.mark.parametrize('name', ['ssd96_vgg16_pws', 'mask_rcnn_r18_fpn_pws'])
def test_inference_is_a_forward_pass_of_plain_convolutions(program, root, name):
    path = root / f'configs/mini/{name}_digits.py'
    cfg = Config.fromfile(path)
    trainee = program.Trainee(str(path), cfg, BATCH, (64, 64), inference=True)
    trainee.build(torch.device('cpu'), num_boxes=3, amp=False, seed=0)
    assert not any(isinstance(m, PWSConv2d) for m in trainee.model.modules())
    before = [p.clone() for p in trainee.model.parameters()]
    assert trainee.step() > 0 and trainee.measure_memory() > 0
    for old, new in zip(before, trainee.model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_the_seed_decides_weights_and_pictures(build):
    def everything(seed):
        trainee = build('ssd96_vgg16_pws', seed=seed)
        boxes = [s.gt_instances.bboxes for s in trainee.batch['data_samples']]
        weights = list(trainee.model.parameters())
        return torch.cat([t.flatten() for t in (*weights, *boxes)])

    assert torch.equal(everything(3), everything(3))
    assert not torch.equal(everything(3), everything(4))


def test_instance_segmentation_gets_masks_of_its_objects(build):
    trainee = build('mask_rcnn_r18_fpn_pws')
    for sample in trainee.batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        assert boxes.shape == (3, 4)
        assert boxes.min() >= 0
        assert boxes.max() <= 64
        masks = sample.gt_instances.masks.get_bboxes('hbox').tensor
        torch.testing.assert_close(masks, boxes.floor(), atol=0, rtol=0)
        assert sample.gt_instances.labels.max() < 10
    trainee.step()


class TestMemory:
    def test_peak_of_a_function(self, program):
        def allocate():
            a, b = torch.empty(2**20), torch.empty(2**20)
            del a
            return b, torch.empty(2**19)

        peak = program.step_memory(allocate, torch.device('cpu'))
        assert peak == 2 * 2**20 * 4

    def test_peak_of_a_function_on_a_gpu(self, program, monkeypatch):
        """The allocator's peak, less what was there before."""
        events = iter([700, None, 1000])
        for name in ('memory_allocated', 'reset_peak_memory_stats'):
            monkeypatch.setattr(torch.cuda, name, lambda device: next(events))
        monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda d: next(events))
        device = torch.device('cuda')
        assert program.step_memory(lambda: None, device) == 300

    def test_counts_weights_momenta_and_activations(self, build):
        trainee = build('ssd96_vgg16_pws')
        trainee.step()
        weights = sum(p.nbytes for p in trainee.model.parameters())
        one = trainee.measure_memory()
        # Weights and momenta, and the gradients that each step makes anew.
        assert one > 3 * weights
        # Twice the pictures take twice the activations, and as much of the rest.
        for key, values in trainee.batch.items():
            trainee.batch[key] = values * 2
        two = trainee.measure_memory()
        assert two > one
        assert two < 2 * one

    def test_does_not_count_other_detectors(self, build):
        trainee = build('ssd96_vgg16_bn')
        trainee.step()
        alone = trainee.measure_memory()
        other = build('ssd96_vgg16_bn')
        other.step()
        assert trainee.measure_memory() == pytest.approx(alone, rel=0.01)


def test_pretrained_weights_are_left_out(program):
    pretrained = dict(type='Pretrained', checkpoint='nowhere.pth')
    normal = dict(type='Normal', layer='Conv2d')
    cfg = dict(
        backbone=dict(type='A', init_cfg=pretrained),
        heads=[dict(init_cfg=[normal, pretrained]), dict(init_cfg=normal)],
        neck=dict(init_cfg=None),
    )
    program.drop_pretrained(cfg)
    assert cfg == dict(
        backbone=dict(type='A', init_cfg=None),
        heads=[dict(init_cfg=[normal]), dict(init_cfg=normal)],
        neck=dict(init_cfg=None),
    )


@pytest.mark.parametrize(
    'name, size',
    [
        ('ssd320_vgg16_pws_1x', (320, 320)),
        ('mask_rcnn_r50_fpn_pws_1x', (800, 1333)),  # height first
    ],
)
def test_default_size_is_the_configs(program, root, name, size):
    cfg = Config.fromfile(root / f'configs/{name}.py')
    assert program.find_picture_size(cfg, ['train_dataloader']) == size


@pytest.mark.parametrize(
    'args, message',
    [
        ([], 'required: CONFIG'),
        (['missing.py'], 'missing.py cannot be read'),
        (['{config}', '--steps', '0'], '--steps: invalid positive_integer'),
        (['{config}', '--device', 'cpu', '--amp'], '--amp needs a GPU'),
        (['{config}', '--device', 'toaster'], "'toaster' is no device"),
        (['{config}', '--device', 'cuda:99'], 'there is no GPU cuda:99'),
        (['{config}', '--out', '{folder}'], 'is a directory'),
        (['{empty}', '--image-size', '8', '8'], 'give --batch-size'),
        (['{empty}', '--batch-size', '8'], 'give --image-size'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_errors_before_any_work(main, configs, tmp_path, capsys, args, message):
    empty = tmp_path / 'empty.py'
    empty.write_text('model = dict()\n')
    names = dict(config=configs[0], folder=tmp_path, empty=empty)
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(**names) for arg in args))
    assert e.value.code == 2
    assert message in capsys.readouterr().err
