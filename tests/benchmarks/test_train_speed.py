"""Tests of benchmarks/train_speed.py."""

import json
import sys

import pytest
import torch
import train_speed

from pws_mmdet.utils.records import read_records

BATCH = 2


@pytest.fixture
def main(monkeypatch):
    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['train_speed.py', *map(str, args)])
        train_speed.main()

    return run_main


@pytest.fixture(scope='session')
def configs(root):
    return [root / f'configs/mini/ssd96_vgg16_{n}_digits.py' for n in ('pws', 'bn')]


def test_table_and_json(main, configs, tmp_path, capsys):
    out = tmp_path / 'new' / 'speed.jsonl'
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
        assert row['images_per_second'] == pytest.approx(BATCH / mean, rel=1e-3)
        shown = next(line for line in table if line.startswith(path.stem))
        figures = [row['images_per_second'], row['ratio'], row['peak_memory_mib']]
        for text, figure in zip(shown.split()[-3:], figures, strict=True):
            assert float(text) == pytest.approx(figure, abs=0.051)
    assert report['results'][0]['ratio'] == 1
    main(configs[0], *options, '--out', out)
    first, second = read_records(out)
    assert first == report and second['results'][0]['config'] == str(configs[0])


def test_watched_steps_stand_beside_the_others(main, configs, tmp_path, capsys):
    out = tmp_path / 'speed.jsonl'
    options = ['--batch-size', BATCH, '--steps', 2, '--warmup', 1, '--device', 'cpu']
    main(configs[0], *options, '--watched', '--out', out)
    plain, watched = json.loads(out.read_text())['results']
    assert not plain['watched'] and watched['watched']
    assert watched['error'] is None and len(watched['seconds']) == 2
    assert f'{configs[0].stem}, watched' in capsys.readouterr().out


def test_a_config_that_raises_ends_only_itself(main, configs, tmp_path, capsys):
    # The last feature map of one 32x32 image has one value per channel. BN refuses it.
    out = tmp_path / 'speed.jsonl'
    options = ['--batch-size', 1, '--image-size', 32, 32, '--steps', 1, '--warmup', 1]
    main(*reversed(configs), *options, '--device', 'cpu', '--out', out)
    bn, pws = json.loads(out.read_text())['results']
    assert 'more than 1 value per channel' in bn['error']
    assert bn['images_per_second'] is bn['ratio'] is bn['peak_memory_mib'] is None
    assert pws['images_per_second'] > 0
    assert pws['ratio'] is None  # the first config has no figures
    assert bn['error'] in capsys.readouterr().out

    with pytest.raises(SystemExit) as e:  # no config could be measured
        main(configs[1], *options, '--device', 'cpu')
    assert e.value.code == 1


@pytest.mark.parametrize(
    'args, message',
    [
        ([], 'required: CONFIG'),
        (['missing.py'], 'missing.py cannot be read'),
        (['{config}', '--steps', '0'], '--steps: invalid positive int'),
        (['{config}', '--device', 'cpu', '--amp'], '--amp needs a GPU'),
        (['{config}', '--device', 'toaster'], "'toaster' is no device"),
        (['{config}', '--device', 'cuda:99'], 'there is no GPU cuda:99'),
        (['{config}', '--out', '{folder}'], 'is a directory'),
        (['{config}', '--out', '{folder}/loop'], 'symbolic links'),
        (['{config}', '--threads', '100000'], '--threads must be at most'),
        (['{config}', '--threads', '9' * 20], '--threads must be at most'),
        (['{empty}', '--image-size', '8', '8'], 'give --batch-size'),
        (['{empty}', '--batch-size', '8'], 'give --image-size'),
        (['{classifier}', '--batch-size', '8'], 'classifier.py is a classifier'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_errors_before_any_work(main, configs, tmp_path, capsys, args, message):
    empty = tmp_path / 'empty.py'
    empty.write_text('model = dict()\n')
    classifier = tmp_path / 'classifier.py'
    classifier.write_text("model = dict(type='ImageClassifier')\n")
    (tmp_path / 'loop').symlink_to('loop')
    names = dict(config=configs[0], folder=tmp_path, empty=empty, classifier=classifier)
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(**names) for arg in args))
    assert e.value.code == 2
    assert message in capsys.readouterr().err
