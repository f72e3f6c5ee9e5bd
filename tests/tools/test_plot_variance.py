"""Tests of tools/analysis_tools/plot_variance.py."""

import csv
import io
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from variance_data import NAMES, ratios, write_record

NAN = math.nan
STEPS = (1, 10, 20, 100)


@pytest.fixture
def work_dir(tmp_path):
    """Write the record of a training; return the path of its work_dir."""

    def write(label, names=NAMES, steps=STEPS, **options):
        return write_record(tmp_path / label, steps, names, **options)

    return write


@pytest.fixture
def main(load_program, monkeypatch):
    program = load_program('tools/analysis_tools/plot_variance.py')

    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['plot_variance.py', *map(str, args)])
        program.main()

    return run_main


@pytest.mark.parametrize('figure', ['1a', '1b', '2a', '2b', 'eq6', 'layers'])
def test_it_writes_the_same_files_each_time(main, work_dir, tmp_path, figure):
    paths = work_dir('Normal', shift=NAN), work_dir('PWS', steps=(1,))
    png, svg = tmp_path / 'new' / 'plot.png', tmp_path / 'new' / 'plot.svg'
    options = ['--figure', figure, '-o', png, '-o', svg, '--title', 'At the start']
    main(*paths, *options, '--labels', 'plain', 'γ=1e-3')
    image = cv2.imread(str(png))
    assert (image != 255).any()
    text = svg.read_text()
    assert 'At the start' in text
    if figure != 'eq6':
        assert 'plain' in text and 'γ=1e-3' in text
    files = png.read_bytes(), svg.read_bytes()
    main(*paths, *options, '--labels', 'plain', 'γ=1e-3')
    assert files == (png.read_bytes(), svg.read_bytes())


def read_table(text):
    return {
        (row['run'], row['step'], row['layer'], row['statistic']): float(row['value'])
        for row in csv.DictReader(io.StringIO(text))
    }


def test_the_table_of_1a_has_the_means(main, work_dir, capsys):
    path = work_dir('PWS', **ratios(np.linspace(1, 2, 16).reshape(4, 4)))
    main(path, '--figure', '1a', '--table', '-')
    found = read_table(capsys.readouterr().out)
    assert len(found) == 4 * 3
    mean, low = 1 + (1 + 5) / 2 / 15, 1 + 1 / 15 - 0.1
    layer = ('PWS', '1-10', 'backbone.b')
    assert found[(*layer, 'var_ratio')] == pytest.approx(mean, rel=1e-5)
    assert found[(*layer, 'var_ratio_min')] == pytest.approx(low, rel=1e-5)


def test_the_table_of_layers_has_every_step(main, work_dir, tmp_path, capsys):
    shift = np.arange(16.0).reshape(4, 4)
    shift[2, 3] = NAN
    file = tmp_path / 'new' / 'numbers.csv'
    main(work_dir('PWS', shift=shift), '--figure', 'layers', '--table', file)
    found = read_table(file.read_text())
    assert len(found) == 2 * 16
    for i, step in enumerate(STEPS):
        for j, name in enumerate(NAMES):
            value = found['PWS', str(step), name, 'shift']
            assert value == shift[i, j] or math.isnan(value) and math.isnan(shift[i, j])
    assert capsys.readouterr().err == f'written to {file}\n'


def test_a_full_disk_keeps_the_old_table(main, work_dir, tmp_path, monkeypatch):
    path = tmp_path / 'old.csv'
    path.write_text('old')
    stock = Path.write_text

    def fill(self, text, *args, **kwargs):
        stock(self, text[:10], *args, **kwargs)
        raise OSError('no space left')

    monkeypatch.setattr(Path, 'write_text', fill)
    with pytest.raises(SystemExit):
        main(work_dir('run'), '--figure', '1a', '--table', path)
    assert path.read_text() == 'old'


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('"step":10,', '"step":"1",', "'1' is no step"),
        ('"shift":[1.0,', '"shift":[', 'step 1 has 3 values of shift for 4 layers'),
        ('"shift":[1.0,', '"shift":["a",', "shift of step 1 is 'a'"),
        ('"loss":1.0', '"loss":"low"', "loss of step 1 is 'low'"),
        ('{"layers":', '{"layer":', 'a step stands before the layers'),
        ('"values":{', '"value":{', "KeyError: 'values'"),
    ],
)
def test_a_damaged_record_is_an_error(
    main, work_dir, tmp_path, capsys, old, new, message
):
    path = work_dir('run')
    [file] = path.glob('*/variance.jsonl')
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(SystemExit) as e:
        main(path, '--figure', '1b', '-o', tmp_path / 'a.png')
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert 'is not as VarianceMonitorHook writes it' in error and message in error
    assert error.count('error:') == 1


@pytest.mark.parametrize(
    'args, message',
    [
        ('{dir} --figure 1b', 'nothing to write: give -o or --table'),
        ('{dir} -o a.png', 'required: --figure'),
        ('{dir} --figure 3 -o a.png', "invalid choice: '3'"),
        ('{dir} --figure 1b -o a.pdf', 'a.pdf must end in .png or .svg'),
        ('{dir} --figure 2a -o a.png --step 3', '--step is for 1a, 1b, eq6'),
        ('{dir} --figure 1b -o a.png --labels a b', '1 WORK_DIRs but 2 --labels'),
        ('{dir} {dir}/../run --figure 1b -o a.png', "are both 'run': tell them apart"),
        ('{empty} --figure 1b -o a.png', 'holds no record of VarianceMonitorHook'),
        (
            '{dir} --figure 1b -o a.png --layers bakbone',
            "no layer matches 'bakbone'; near it: backbone.",
        ),
        ('{dir} --figure 1b -o a.png --layers [', "'[' is no regular expression"),
        (
            '{dir} {other} --figure 1b -o a.png --layers a$',
            "'other' has none of the layers backbone.a",
        ),
        ('{dir} --figure 2a -o a.png', 'figure 2a has no value that is finite and'),
    ],
)
def test_errors(main, work_dir, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    path = work_dir('run', var_w_min=NAN)
    other = work_dir('other', NAMES[1:])
    args = args.format(dir=path, empty=tmp_path / 'none', other=other)
    with pytest.raises(SystemExit) as e:
        main(*args.split())
    assert e.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'a.png').exists()
