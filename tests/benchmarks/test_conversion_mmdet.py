"""Tests of benchmarks/conversion_mmdet.py."""

import sys

import conversion_mmdet
import pytest
import torch
from conftest import ROOT, load_config
from conversion import KINDS, Laboratory, convert
from conversion_run import format_metrics, to_markdown
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.utils.config import read_config
from pws_mmdet.utils.records import read_records

CONFIGS = [f'configs/mini/ssd96_vgg16_{norm}_digits.py' for norm in ('pws', 'bn')]
RECORDS = [
    path
    for path in sorted((ROOT / 'docs/results/conversion').glob('*.jsonl'))
    if path.stem != 'real'  # of conversion_real.py
]


def settle(model):
    """Give BN random statistics and weights, as after a training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def test_kinds():
    layers = []
    for c_in, c_out in ((3, 12), (12, 12), (12, 6)):
        layers += [nn.Conv2d(c_in, c_out, 3), nn.BatchNorm2d(c_out), nn.ReLU()]
    model = settle(nn.Sequential(*layers[:-1]))
    x = torch.randn(2, 3, 16, 16)
    types = {'BN': nn.Conv2d, 'plain': nn.Conv2d, 'PWS': PWSConv2d}
    assert [*types] == KINDS
    for kind, expected in types.items():
        new = convert(kind, model)
        convs = [type(m) for m in new.modules() if isinstance(m, nn.Conv2d)]
        assert convs == [expected] * 3
        assert (new is model) == (kind == 'BN')
        torch.testing.assert_close(new(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.fixture
def model():
    return settle(MODELS.build(load_config(CONFIGS[1]).model))


@pytest.fixture
def data(digits, tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/digits').symlink_to(digits)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_training_starts_from_what_was_converted(model, data, tmp_path):
    new = convert('PWS', model)
    configs = [read_config(ROOT / name) for name in CONFIGS]
    laboratory = Laboratory(*configs, tmp_path / 'laboratory')
    rate = {'optim_wrapper.optimizer.lr': 1e-12, 'train_cfg.max_epochs': 1}
    runner = laboratory.make_runner(new, False, {**rate, 'train_cfg.val_begin': 2})
    runner.train()
    trained = runner.model.state_dict()
    for key, value in new.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def measure(data, tmp_path, monkeypatch):
    def run(checkpoint, *options):
        paths = [*(ROOT / name for name in CONFIGS), checkpoint, 'out.jsonl']
        args = [*paths, *options]
        monkeypatch.setattr(sys, 'argv', ['conversion_mmdet.py', *map(str, args)])
        conversion_mmdet.main()

    return run


@pytest.mark.slow
def test_a_table(model, measure, tmp_path, capsys):
    torch.save(dict(state_dict=model.state_dict()), 'bn.pth')
    measure('bn.pth', '--kinds', 'BN', 'PWS', '--seeds', 0, 1, '--lrs', 1e-4)
    records = read_records(tmp_path / 'out.jsonl')
    assert [r['kind'] for r in records] == ['BN', 'PWS']
    for row in records:
        for metrics in (row['converted'], *row['trained']['0.0001']):
            assert metrics.keys() == {'coco/bbox_mAP'}
    assert records[0]['converted'] == pytest.approx(records[1]['converted'], abs=0.1)
    table = capsys.readouterr().out
    assert table == to_markdown(records)
    lines = [line for line in table.splitlines() if line.startswith('| PWS |')]
    assert len(lines) == 1 and lines[0].count(',') == 1, 'two seeds in a cell'
    with pytest.raises(SystemExit):
        measure('bn.pth')
    assert 'out.jsonl exists; name a new file' in capsys.readouterr().err


def test_weights_of_another_network(measure, capsys):
    torch.save(dict(state_dict={'conv.weight': torch.zeros(1)}), 'other.pth')
    with pytest.raises(SystemExit):
        measure('other.pth')
    assert 'other.pth does not fit' in capsys.readouterr().err


def test_a_config_without_data(data, tmp_path, monkeypatch, capsys):
    (tmp_path / 'model.py').write_text("model = dict(type='PWSConv2d')")
    args = ['model.py', 'model.py', 'bn.pth', 'out.jsonl']
    monkeypatch.setattr(sys, 'argv', ['conversion_mmdet.py', *args])
    with pytest.raises(SystemExit):
        conversion_mmdet.main()
    assert 'model.py has no data with a pipeline to train on' in capsys.readouterr().err


def test_a_divergence_is_an_outcome():
    assert format_metrics(None) == 'diverged'


@pytest.mark.parametrize('path', RECORDS, ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_records(path):
    page = (ROOT / 'docs/results/conversion.md').read_text()
    table = to_markdown(read_records(path))
    assert f'<!-- {path.stem} -->\n{table}<!-- /{path.stem} -->' in page
