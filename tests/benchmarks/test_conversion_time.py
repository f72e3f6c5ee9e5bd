"""Tests of benchmarks/conversion_time.py."""

import os
import sys

import conversion_time
import pytest
import torch
from conftest import ROOT
from conversion_time_run import Case, convert, make, sizes, to_markdown
from device import in_new_process

from pws_mmdet.utils.records import read_records

RECORDS = ROOT / 'docs/benchmarks/conversion-time.jsonl'
TINY = dict(batch_size=2, image_size=8, channels=4)


@pytest.fixture
def measure(monkeypatch):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['conversion_time.py', *map(str, args)])
        conversion_time.main()

    return run


def test_all_depths_have_one_number_of_images_and_one_depth_has_all():
    expected = [(20, 64), (56, 64), (20, 32), (20, 128)]
    assert list(sizes([20, 56, 20], [64, 32, 64, 128])) == expected


def test_a_network_has_its_depth_and_calibrated_statistics():
    case = Case(14, 6, 'auto', **TINY)
    model, images = make(case)
    layers = [m for m in model.modules() if hasattr(m, 'in_channels')]
    assert len(layers) == 13 and layers[0].out_channels == 4  # and a linear layer
    assert images.shape == (6, 3, 8, 8) and not model.training
    y = model.conv1(images)
    means = y.mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, means, atol=1e-5, rtol=1e-4)
    again, same = make(case)
    torch.testing.assert_close(again(same), model(images))


def test_exclude_is_that_of_the_case():
    everything = convert(Case(8, 4, (), **TINY))
    nothing_but_one = convert(Case(8, 4, ('layer',), **TINY))
    assert everything['convolutions'] == nothing_but_one['convolutions'] == 7
    assert everything['kept'] == 0 and nothing_but_one['kept'] == 6


def test_a_process_of_its_own():
    assert in_new_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match='invalid literal'):
        in_new_process(int, 'x')


@pytest.mark.slow
def test_a_table(measure, tmp_path, capsys):
    out, page = tmp_path / 'out/time.jsonl', tmp_path / 'page.md'
    page.write_text('Before\n<!-- time -->\n<!-- /time -->\nAfter\n')
    tiny = ['--image-size', 8, '--channels', 4, '--batch-size', 2]
    measure(out, '--depths', 8, 14, '--num-images', 4, *tiny, '--markdown', page)
    records = read_records(out)
    assert [(r['depth'], r['exclude']) for r in records] == [
        (8, 'auto'),
        (8, []),
        (14, 'auto'),
        (14, []),
    ]
    for record in records:
        assert record['convolutions'] == record['depth'] - 1
        assert record['images'] == 4 and record['seconds'] > 0
        assert record['cpu_seconds'] > 0
        assert 2**26 < record['memory']['before'] <= record['memory']['during']
    expected = f'Before\n<!-- time -->\n{to_markdown(records)}<!-- /time -->\nAfter\n'
    assert page.read_text() == expected
    with pytest.raises(SystemExit):
        measure(out)
    assert 'time.jsonl exists; name a new file' in capsys.readouterr().err


def test_a_depth_that_does_not_exist(measure, tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(tmp_path / 'time.jsonl', '--depths', 20, 34)
    assert 'there is no ResNet-34' in capsys.readouterr().err
    assert not (tmp_path / 'time.jsonl').exists()


def make_record(depth, images, exclude, seconds):
    return dict(
        command='python conversion_time.py',
        date='2026-01-02T00:00:00+00:00',
        versions=dict(torch='2'),
        cpu='CPU',
        threads=2,
        depth=depth,
        images=images,
        exclude=exclude,
        seed=0,
        seconds=seconds,
        cpu_seconds=9.0,
        memory=dict(before=2**20, during=3 * 2**20),
        convolutions=depth - 1,
        kept=2 if exclude == 'auto' else 0,
    )


def test_a_row_for_each_network_and_what_a_convolution_adds():
    sizes = [(8, 64, 0.7), (14, 64, 1.3), (20, 64, 2.5), (8, 32, 0.35)]
    records = [
        make_record(depth, images, exclude, seconds * factor)
        for depth, images, seconds in sizes
        for exclude, factor in (('auto', 1), ([], 2))
    ]
    lines = to_markdown(records).splitlines()
    first = ['ResNet-8', '7', '64', '0.7', '100', '9.0', '3', '1', '2']
    second = ['1.4', '200', '9.0', '3', '1', '0']
    assert lines[2] == f'| {" | ".join(first + second)} |'
    assert lines[5].startswith('| ResNet-8 | 7 | 32 | 0.3 | 50 | 9.0 |')
    text = 'ms for each convolution from'
    assert f'arguments: 100 {text} 8 to 14, 200 {text} 14 to 20.' in lines[7]
    assert f'200 {text} 8 to 14, 400 {text} 14 to 20.' in lines[8]


def test_published_table_is_that_of_the_records():
    page = RECORDS.with_suffix('.md').read_text()
    table = to_markdown(read_records(RECORDS))
    name = RECORDS.stem
    assert f'<!-- {name} -->\n{table}<!-- /{name} -->' in page
