import math
import re
import sys

import pytest

from pws_mmdet.analysis import Layer
from pws_mmdet.analysis.record import write_header, write_step
from pws_mmdet.analysis.statistics import STATISTICS

SSD = 'configs/mini/ssd96_vgg16_{}_digits.py'


@pytest.fixture(scope='module')
def program(root):
    sys.path.insert(0, str(root / 'tools/analysis_tools'))  # it imports its sibling
    import suggest_gamma

    yield suggest_gamma
    sys.path.pop(0)


@pytest.fixture
def suggest(program, root, monkeypatch, capsys):
    def run(config, *args):
        monkeypatch.setattr(sys, 'argv', ['', str(root / config), *map(str, args)])
        program.main()
        return capsys.readouterr().out

    return run


def rows(text):
    """Numbers of each layer: n, gamma, suggested, fraction."""
    table = re.search(r'^layer .*?\n(.*?)\n\n', text, re.M | re.S)[1]
    lines = [line.split() for line in table.splitlines()]
    return {name: list(map(float, numbers)) for name, *numbers in lines}


def test_a_fraction_of_the_he_variance(suggest):
    text = suggest(SSD.format('pws'))
    layers = rows(text)
    assert len(layers) == 27
    assert layers['backbone.stages.0.0.conv'] == [27, 1e-3, 0.0074, 0.1]
    for n, _, suggested, fraction in layers.values():
        assert suggested == pytest.approx(0.1 * 2 / n, rel=0.05) and fraction == 0.1
    assert 'gamma=0.1, relative_gamma=True' in text
    assert "The paper's gamma for SSD at this rate is 0.001." in text
    text = suggest(SSD.format('pws'), '--lr', 0.05)
    for part in ('backbone', 'neck', 'bbox_head'):
        conv_cfg = "dict(type='PWS', gamma=0.5, relative_gamma=True)"
        assert f'model.{part}.conv_cfg={conv_cfg}' in text


def record(path, names):
    layers = [Layer(name, 'PWSConv2d', 27, 16, 1e-3, False) for name in names]
    values = {name: [math.nan] * len(layers) for name in STATISTICS}
    values.update(relative_step=[0.2] * len(layers), var_w_min=[0.07] * len(layers))
    write_header(path / 'log/variance.jsonl', layers)
    write_step(path / 'log/variance.jsonl', 1, 0.01, 3.0, values)


def test_a_record(suggest, tmp_path):
    record(tmp_path, ['backbone.stages.0.0.conv'])
    text = suggest(SSD.format('pws'), '--record', tmp_path)
    suggested = 0.071 * 16 - 0.07
    assert rows(text)['backbone.stages.0.0.conv'][2] == pytest.approx(suggested, 0.05)
    assert '1 watched steps up to step 1' in text
    text = suggest(SSD.format('pws'), '--record', tmp_path, '--largest-step', 0.3)
    assert rows(text)['backbone.stages.0.0.conv'][3] == 0.001


def test_steps_of_a_training(suggest, digits):
    options = [f'data_root={digits}/', 'train_dataloader.batch_size=2']
    options += ['train_dataloader.num_workers=0']
    options += ['train_dataloader.persistent_workers=False']
    options += [f'train_dataloader.dataset.data_root={digits}/']
    text = suggest(SSD.format('pws'), '--steps', 2, '--cfg-options', *options)
    assert 'in 2 watched steps up to step 2' in text
    assert len(rows(text)) == 27


@pytest.mark.parametrize(
    ('config', 'args', 'message'),
    [
        (SSD.format('bn'), [], 'has no PWS convolution'),
        ('none.py', [], 'none.py cannot be read'),
        (SSD.format('pws'), ['--lr', '-1'], 'lr must be positive'),
        (SSD.format('pws'), ['--record', '.'], 'holds no record'),
        (SSD.format('pws'), ['--steps', '0'], 'invalid positive_integer'),
        (SSD.format('pws'), ['--steps', '1', '--record', '.'], 'not allowed with'),
    ],
)
def test_bad_input(suggest, capsys, tmp_path, monkeypatch, config, args, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        suggest(config, *args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_record_of_another_model(suggest, capsys, tmp_path):
    record(tmp_path, ['neck.other'])
    with pytest.raises(SystemExit):
        suggest(SSD.format('pws'), '--record', tmp_path)
    assert 'is of another model: it has neck.other' in capsys.readouterr().err
