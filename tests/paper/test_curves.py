"""Tests of tools/paper/plot_curves.py."""

import json
import math
import sys

import cv2
import numpy as np
import plot_curves
import pytest
from curves import plot, read
from matplotlib.colors import to_hex

NAN = math.nan
F = 'box/f_measure'


@pytest.fixture
def record(tmp_path):
    """Write a file with the record of a training; its path."""

    def write(label, values, seed=0, outcome='finished', metric=F):
        curve = [
            {'epoch': epoch, 'step': 90 * epoch, metric: value}
            for epoch, value in values.items()
        ]
        content = dict(
            label=label, run=f'{label}-s{seed}', seed=seed, outcome=outcome, curve=curve
        )
        path = tmp_path / f'{label}-s{seed}.jsonl'
        path.write_text(json.dumps(content) + '\n')
        return path

    return write


@pytest.fixture
def draw():
    """Plot files; the lines by their legend entries, and the axes."""

    def draw_files(*paths, metric=F, **kwargs):
        trainings = [training for path in paths for training in read(path)]
        figure = plot(trainings, metric, **kwargs)
        (axes,) = figure.axes
        entries = [text.get_text() for text in figure.legends[0].get_texts()]
        return dict(zip(entries, axes.lines, strict=True)), axes

    return draw_files


def points(line):
    return line.get_xydata().tolist()


def test_lines_of_records(draw, record):
    pws = record('PWS', {1: 0.1, 2: 0.4, 4: 0.5})
    bn = record('BN', {1: 0.2, 2: 0.3})
    lines, axes = draw(pws, bn, title='Conditions')
    assert list(lines) == ['PWS', 'BN']
    assert points(lines['PWS']) == [[1, 0.1], [2, 0.4], [4, 0.5]]
    assert points(lines['BN']) == [[1, 0.2], [2, 0.3]]
    assert axes.get_ylabel() == F
    assert axes.get_xlabel() == 'epoch'
    assert axes.get_title() == 'Conditions'
    assert not axes.collections, 'a band of one training'


@pytest.mark.parametrize('value', [NAN, None])
def test_nan_is_a_gap(draw, record, value):
    lines, _ = draw(record('PWS', {1: 0.1, 2: value, 3: 0.3}))
    y = lines['PWS'].get_ydata()
    assert np.isnan(y).tolist() == [False, True, False]


def test_the_legend_tells_who_did_not_finish(draw, record):
    lines, _ = draw(
        record('WN', {1: 0.2}, outcome='diverged at iteration 137'),
        record('Normal', {}, outcome='diverged at iteration 3'),
        record('SN', {1: 0.1}, outcome='failed with exit status 1: a long story'),
        record('PWS', {1: 0.3}),
    )
    assert list(lines) == [
        'WN (diverged at iteration 137)',
        'Normal (diverged at iteration 3)',
        'SN (failed with exit status 1)',
        'PWS',
    ]
    assert points(lines['Normal (diverged at iteration 3)']) == []


def test_seeds_become_a_mean_in_a_band(draw, record):
    lines, axes = draw(
        record('PWS', {1: 0.1, 2: 0.2, 3: 0.5}, seed=0),
        record('BN', {1: 0.7}),
        record('PWS', {1: 0.4, 2: NAN, 3: 0.9}, seed=1),
        record('PWS', {1: 0.4}, seed=2, outcome='diverged at iteration 99'),
    )
    assert list(lines) == ['PWS (3 runs, 1 diverged at iteration 99)', 'BN']
    mean, _ = lines.values()
    assert np.allclose(points(mean), [[1, 0.3], [2, 0.2], [3, 0.7]])
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 0.1), (1, 0.4), (2, 0.2), (3, 0.5), (3, 0.9)}


def test_runs_of_a_file_are_chosen_by_name_or_pattern(draw, record, tmp_path):
    paths = [record('PWS', {1: 0.1}, seed) for seed in (0, 1)] + [record('BN', {1: 1})]
    path = tmp_path / 'table.jsonl'
    path.write_text(''.join(p.read_text() for p in paths))
    assert list(draw(f'{path}:BN-s0', f'{path}:PWS-s*')[0]) == ['BN', 'PWS (2 runs)']
    assert list(draw(f'{path}:PWS-s1')[0]) == ['PWS']
    assert list(draw(path)[0]) == ['PWS (2 runs)', 'BN']


def test_lines_differ_in_more_than_colour(draw, record):
    lines, _ = draw(*(record(f'method {i}', {1: i / 20}) for i in range(16)))
    colors = [to_hex(line.get_color()) for line in lines.values()]
    assert len(set(colors[:8])) == 8
    styles = [(line.get_linestyle(), line.get_marker()) for line in lines.values()]
    assert len(set(styles)) == 16


@pytest.fixture
def work_dir(tmp_path):
    """The logs of a training that was killed and resumed."""
    folder = tmp_path / 'ssd96_pws'

    def write(name, *entries, end=''):
        path = folder / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(e) + '\n' for e in entries) + end)

    train = dict(lr=0.01, loss=2.5, data_time=0.1, time=0.5, epoch=1, iter=10, step=10)
    val = dict(data_time=0.1, time=0.2)
    write(
        '20260102_000000',
        train,
        {**val, F: 0.25, 'step': 2},
        {**val, F: NAN, 'step': 3},
    )
    write(
        '20260101_000000',
        train,
        {**val, F: 0.1, 'step': 1},
        {**val, F: 0.2, 'step': 2},
        end='{"box/f_mea',
    )
    return folder


def test_a_work_dir(draw, work_dir):
    lines, _ = draw(work_dir)
    assert list(lines) == ['ssd96_pws']
    assert points(lines['ssd96_pws'])[:2] == [[1, 0.1], [2, 0.25]]
    assert math.isnan(points(lines['ssd96_pws'])[2][1])


@pytest.fixture
def main(monkeypatch):
    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['plot_curves.py', *map(str, args)])
        plot_curves.main()

    return run_main


def test_files(main, record, work_dir, tmp_path):
    paths = record('PWS', {1: 0.1, 2: 0.2}), work_dir
    png, svg = tmp_path / 'new' / 'curves.png', tmp_path / 'new' / 'curves.svg'
    options = ['--title', 'Conditions', '-o', png, '-o', svg]
    main(*paths, *options, '--labels', 'first', 'second')
    image = cv2.imread(str(png))
    assert (image != 255).any()
    text = svg.read_text()
    for part in ('Conditions', 'first', 'second'):
        assert part in text  # as comments beside the outlines of the letters
    files = png.read_bytes(), svg.read_bytes()
    main(*paths, *options, '--labels', 'first', 'second')
    assert files == (png.read_bytes(), svg.read_bytes())


def test_unknown_metric(main, record, work_dir, tmp_path, capsys):
    path = record('PWS', {1: 0.1}, metric='coco/bbox_mAP')
    with pytest.raises(SystemExit):
        main(work_dir, path, '-o', tmp_path / 'curves.png')
    message = capsys.readouterr().err
    assert f"{path}:PWS-s0 has no metric '{F}'; there are coco/bbox_mAP" in message
    assert not (tmp_path / 'curves.png').exists()


def test_a_training_twice(main, record, tmp_path, capsys):
    path = record('PWS', {1: 0.1}, seed=4)
    with pytest.raises(SystemExit):
        main(path, path, '-o', tmp_path / 'curves.png')
    assert "are both 'PWS' of seed 4: name them differently" in capsys.readouterr().err
    main(path, path, '-o', tmp_path / 'curves.png', '--labels', 'one', 'two')


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"label": "PWS", "curve": []}', "it lacks 'outcome'"),
        ('{"label":', 'line 1: not JSON'),
        ('[]', 'line 1: not a record'),
        ('', "has no run '*'; there are: none"),
    ],
)
def test_a_file_that_is_no_record(main, tmp_path, capsys, content, message):
    path = tmp_path / 'record.jsonl'
    path.write_text(content)
    with pytest.raises(SystemExit):
        main(path, '-o', tmp_path / 'curves.png')
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'args, message',
    [
        (['{record}'], 'required: -o'),
        (['{record}', '-o', 'a.pdf'], 'a.pdf must end in .png or .svg'),
        (['{record}', '-o', 'a.png', '--labels', 'a', 'b'], '1 RECORDs but 2'),
        (['{folder}/none.jsonl', '-o', 'a.png'], 'No such file'),
        (['{folder}/none.jsonl:a', '-o', 'a.png'], 'No such file'),
        (['{record}:BN*', '-o', 'a.png'], "has no run 'BN*'; there are: PWS-s0"),
        (['{folder}', '-o', 'a.png'], 'is no work_dir of a training'),
        (['{empty}', '-o', 'a.png'], 'none of the trainings reached a validation'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_errors(main, record, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    names = dict(
        record=record('PWS', {1: 0.1}), empty=record('WN', {}), folder=tmp_path
    )
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(**names) for arg in args))
    assert e.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'a.png').exists()
