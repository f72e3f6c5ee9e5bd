import argparse
import math
import re
import sys

import pytest
from variance_data import write_record

from pws_mmdet.analysis.gamma import pws_convs
from pws_mmdet.analysis.gamma_suggestion import config_part
from pws_mmdet.utils.config import ConfigOptions, build_model, read_config

SSD = 'configs/mini/ssd96_vgg16_{}_digits.py'


@pytest.fixture
def suggest(load_program, root, monkeypatch, capsys):
    """Run the program; return what it prints."""
    program = load_program('tools/analysis_tools/suggest_gamma.py')

    def run(config, *args):
        monkeypatch.setattr(sys, 'argv', ['', str(root / config), *map(str, args)])
        program.main()
        return capsys.readouterr().out

    return run


def rows(text):
    """Return the numbers of each layer: n, gamma, suggested gamma, fraction."""
    table = re.search(r'^layer .*?\n(.*?)\n\n', text, re.M | re.S)[1]
    lines = [line.split() for line in table.splitlines()]
    return {name: list(map(float, numbers)) for name, *numbers in lines}


def test_without_options_it_suggests_a_fraction_of_the_he_variance(suggest):
    text = suggest(SSD.format('pws'))
    layers = rows(text)
    assert len(layers) == 27
    assert layers['backbone.stages.0.0.conv'] == [27, 1e-3, 0.0074, 0.1]
    for n, _, suggested, fraction in layers.values():
        assert suggested == pytest.approx(0.1 * 2 / n, rel=0.05) and fraction == 0.1
    assert 'The paper takes 1e-3 for SSD at a rate of 1e-2' in text
    text = suggest(SSD.format('pws'), '--lr', 0.05)
    for part in ('backbone', 'neck', 'bbox_head'):
        assert f'model.{part}.conv_cfg.gamma=0.5 ' in text


MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_pws_digits.py'


@pytest.mark.parametrize('config', [SSD.format('pws'), MASK_RCNN])
def test_the_config_accepts_the_printed_options(suggest, root, config):
    text = suggest(config, '--lr', 0.05)
    options = [o for o in re.findall(r'^  (model\..*)$', text, re.M)]
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    args = parser.parse_args(['--cfg-options', *' '.join(options).split()])
    cfg = read_config(root / config, args.cfg_options)
    convs = pws_convs(build_model(config, cfg))
    assert len(convs) == len(rows(text))
    for conv in convs.values():
        assert conv.gamma * conv.weight[0].numel() / 2 == pytest.approx(0.5)


def test_a_layer_belongs_to_the_innermost_part_of_the_config():
    model = dict(
        type='Detector',
        neck=[dict(type='FPN'), dict(type='BFP', refine=dict(a=1))],
        roi_head=dict(type='Cascade', bbox_head=[dict(type='A'), dict(type='B')]),
    )
    for layer, key in {
        'neck.1.refine.conv': 'model.neck.1',
        'roi_head.bbox_head.1.fcs.0': 'model.roi_head.bbox_head.1',
        'student.backbone.conv': 'model',
    }.items():
        assert config_part(layer, model) == key


def test_it_says_so_if_no_gamma_can_help(suggest, tmp_path):
    record(tmp_path, ['backbone.stages.0.0.conv'], step=math.nan)
    text = suggest(SSD.format('pws'), '--record', tmp_path)
    assert 'model.backbone: its steps were not finite' in text
    assert 'gamma=inf' not in text


def record(path, names, step=0.2):
    """Write a record of PWS layers whose steps are ``step`` of their norm."""
    values = dict(relative_step=step, var_w_min=0.07)
    values['scaled_step'] = step * math.sqrt(0.07 + 1e-3)
    write_record(path, (1,), names, gamma=1e-3, n=27, **values)


def test_a_record_bounds_the_steps(suggest, tmp_path):
    record(tmp_path, ['backbone.stages.0.0.conv'])
    text = suggest(SSD.format('pws'), '--record', tmp_path)
    suggested = 0.071 * 16 - 0.07
    assert rows(text)['backbone.stages.0.0.conv'][2] == pytest.approx(suggested, 0.05)
    assert '1 watched steps up to step 1' in text
    text = suggest(SSD.format('pws'), '--record', tmp_path, '--largest-step', 0.3)
    assert rows(text)['backbone.stages.0.0.conv'][3] == 0.001


@pytest.fixture
def options(digits):
    """Options that train on a few images of digits."""
    return [
        '--cfg-options',
        f'data_root={digits}/',
        f'train_dataloader.dataset.data_root={digits}/',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    ]


def test_it_trains_some_steps_first(suggest, options):
    text = suggest(SSD.format('pws'), '--steps', 2, *options)
    assert 'in 2 watched steps up to step 2' in text
    assert len(rows(text)) == 27


def test_it_looks_at_the_steps_before_a_divergence(suggest, options):
    text = suggest(SSD.format('pws'), '--steps', 12, '--lr', 1e5, *options)
    assert '\nTraining diverged at iteration ' in text
    assert 'The suggestion is from the steps before.\n\nlayer ' in text
    assert 'in 1 watched steps up to step 1' in text
    assert len(rows(text)) == 27


@pytest.mark.parametrize(
    ('config', 'args', 'message'),
    [
        (SSD.format('bn'), [], 'has no PWS convolution'),
        ('none.py', [], 'none.py cannot be read'),
        (SSD.format('pws'), ['--lr', '-1'], '--lr must be from 1e-12 to 1e+06'),
        (SSD.format('pws'), ['--lr', '1e300'], '--lr must be from 1e-12 to 1e+06'),
        (SSD.format('pws'), ['--largest-step', '0'], '--largest-step must be from'),
        (SSD.format('pws'), ['--largest-step', 'nan'], '--largest-step must be from'),
        (SSD.format('pws'), ['--record', '.'], 'holds no record'),
        (SSD.format('pws'), ['--steps', '0'], 'invalid positive int'),
        (SSD.format('pws'), ['--steps', '1', '--record', '.'], 'not allowed with'),
    ],
)
def test_bad_input(suggest, capsys, tmp_path, monkeypatch, config, args, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        suggest(config, *args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_convolution_alone_is_an_error(suggest, capsys, tmp_path):
    config = tmp_path / 'conv.py'
    config.write_text(
        "model = dict(type='PWS', in_channels=2, out_channels=2, kernel_size=3)"
    )
    with pytest.raises(SystemExit):
        suggest(config, '--lr', 0.1)
    assert 'describes one convolution, and no network' in capsys.readouterr().err


def test_a_record_of_another_model_is_an_error(suggest, capsys, tmp_path):
    record(tmp_path, ['neck.other'])
    with pytest.raises(SystemExit):
        suggest(SSD.format('pws'), '--record', tmp_path)
    assert 'is of another model: it has neck.other' in capsys.readouterr().err
