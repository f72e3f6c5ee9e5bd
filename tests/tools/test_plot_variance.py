"""Tests of tools/analysis_tools/plot_variance.py."""

import csv
import io
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from pws_mmdet.analysis import STATISTICS
from pws_mmdet.analysis.plots import plot_variance
from pws_mmdet.analysis.variance_record import Layer, write_header, write_step

NAN = math.nan
NAMES = ('backbone.a', 'backbone.b', 'backbone.c', 'head.d')
STEPS = (1, 10, 20, 100)


@pytest.fixture
def work_dir(tmp_path):
    """Write a record of a training; the path of its work_dir.

    Statistics are (S, L) or what broadcasts to it; the others are all 1.
    """

    def write(label, names=NAMES, steps=STEPS, gamma=0.0, filters=4, **statistics):
        shape = len(steps), len(names)
        values = {name: np.ones(shape) for name in STATISTICS}
        for name, value in statistics.items():
            values[name] = np.broadcast_to(value, shape)
        path = tmp_path / label / '20260101_000000' / 'variance.jsonl'
        layer = dict(type='Conv2d', n=9, filters=filters, gamma=gamma, frozen=False)
        write_header(path, [Layer(name=name, **layer) for name in names])
        for i, step in enumerate(steps):
            write_step(path, step, 0.1, 1.0, {k: v[i] for k, v in values.items()})
        return tmp_path / label

    return write


@pytest.fixture
def draw():
    """Plot work_dirs; return the figure, and the entries of its legend."""

    def plot(*paths, figure, layers=None, step=None):
        drawn = plot_variance(paths, figure, layers=layers, step=step).figure
        entries = [t.get_text() for legend in drawn.legends for t in legend.texts]
        return drawn, entries

    return plot


def points(line):
    return line.get_xydata().tolist()


def ratios(mean):
    """var_ratio (S, L) with its band, the minima below the mean and the maxima above"""
    mean = np.array(mean)
    return dict(var_ratio=mean, var_ratio_min=mean - 0.1, var_ratio_max=mean + 0.2)


def test_figure_1a_is_the_mean_of_the_beginning_in_a_band(draw, work_dir):
    values = ratios([[0.9, 1, 1, 1], [1.1, 1, 1.2, 1], [5, 5, 5, 5], [7, 7, 7, 7]])
    path = work_dir('Normal', **values)
    drawn, entries = draw(path, work_dir('BN', **ratios([1.5])), figure='1a')
    [axes] = drawn.axes
    normal, bn = axes.lines
    assert entries == ['Normal', 'BN']
    assert normal.get_xdata().tolist() == [0, 1, 2, 3]
    assert np.allclose(normal.get_ydata(), [1, 1, 1.1, 1])
    assert np.allclose(bn.get_ydata(), 1.5)
    corners = axes.collections[0].get_paths()[0].vertices
    for x, low, high in ((0, 0.8, 1.3), (1, 0.9, 1.2), (2, 0.9, 1.4)):
        ends = corners[corners[:, 0] == x][:, 1]
        assert np.allclose([ends.min(), ends.max()], [low, high])
    assert axes.get_xlabel() == 'layer (mean of steps 1 to 10)'
    assert axes.get_ylabel() == 'Var[W$_o$ − ΔW$_o$] / Var[W$_o$]'
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NAMES)
    assert axes.get_yscale() == 'linear'
    assert to_hex(normal.get_color()) != to_hex(bn.get_color())
    assert normal.get_linestyle() != bn.get_linestyle()


def test_a_step_is_the_watched_one_next_to_it(draw, work_dir):
    shift = np.array(STEPS)[:, None] * np.ones(4)
    first = work_dir('first', shift=shift)
    drawn, entries = draw(first, figure='1b', step=18)
    assert drawn.axes[0].lines[0].get_ydata().tolist() == [20] * 4
    assert drawn.axes[0].get_xlabel() == 'layer (step 20)'
    assert entries == ['first']
    second = work_dir('second', steps=(2, 7, 13, 14))
    _, entries = draw(first, second, figure='1b', step=18)
    assert entries == ['first (step 20)', 'second (step 14)']


def test_all_trainings_show_the_same_beginning(draw, work_dir):
    long = work_dir('long', steps=(1, 50, 99, 1000))
    short = work_dir('short', steps=(1, 50, 99, 101))
    _, entries = draw(long, short, figure='1b')
    assert entries == ['long', 'short']
    late = work_dir('late', steps=(500, 600, 700, 800))
    _, entries = draw(long, late, figure='1b')
    assert entries == ['long (mean of steps 1 to 99)', 'late (step 500)']


def test_figure_1b_has_gaps_where_a_log_axis_has_nothing(draw, work_dir):
    values = [[0.01, NAN, 1e3, 0], [0.03, 2, NAN, 0], [0] * 4, [0] * 4]
    path = work_dir('Normal', shift=values)
    gone = work_dir('gone', shift=NAN)
    drawn, entries = draw(path, gone, figure='1b')
    [axes] = drawn.axes
    assert axes.get_yscale() == 'log'
    assert axes.get_ylabel() == 'Var$_o$[n E[ΔW$_o$]]'
    # the mean of what is finite
    expected = [0.02, 2, 1e3, NAN]
    assert np.allclose(axes.lines[0].get_ydata(), expected, equal_nan=True)
    assert np.isnan(axes.lines[1].get_ydata()).all()
    assert entries == [
        'Normal (2 values not finite, 2 are 0)',
        'gone (8 values not finite)',
    ]


def test_layers_go_together_by_their_names(draw, work_dir):
    whole = work_dir('whole')
    part = work_dir('part', ('backbone.b', 'neck.x', 'head.d'), shift=[[1, 2, 3]])
    drawn, _ = draw(whole, part, figure='1b')
    [axes] = drawn.axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ['backbone.a', 'backbone.b', 'neck.x', 'backbone.c', 'head.d']
    assert points(axes.lines[0]) == [[0, 1], [1, 1], [3, 1], [4, 1]]
    assert points(axes.lines[1]) == [[1, 1], [2, 2], [4, 3]]


@pytest.mark.parametrize('figure', ['1a', '1b', '2a', '2b'])
def test_different_models_are_refused(draw, work_dir, figure):
    first = work_dir('first')
    with pytest.raises(
        ValueError, match="'other' has no layer of the names of .*first"
    ):
        draw(first, work_dir('other', ('conv1', 'conv2')), figure=figure)
    wider = work_dir('wider', filters=8)
    with pytest.raises(
        ValueError, match='backbone.a has 4 filters .* 8 of 9 in .wider'
    ):
        draw(first, wider, figure=figure)


@pytest.mark.parametrize('figure', ['eq6', 'layers'])
def test_panels_show_different_models(draw, work_dir, figure):
    other = work_dir('other', ('conv1', 'conv2'))
    drawn, _ = draw(work_dir('first'), other, figure=figure)
    labels = [
        label.get_text()
        for axes in drawn.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    assert {*NAMES, 'conv1', 'conv2'} <= set(labels)


def test_figure_2_is_of_the_third_layer(draw, work_dir):
    course = np.array([4, 3, NAN, 1])[:, None] * [9, 9, 0.1, 9]
    first = work_dir('PWS', gamma=1e-3, var_w_min=course)
    short = work_dir('Normal', steps=(1, 10), var_w_min=[[9, 9, 0.2, 9]])
    drawn, entries = draw(first, short, figure='2a')
    [axes] = drawn.axes
    pws, normal = axes.lines
    assert pws.get_xdata().tolist() == list(STEPS)
    assert np.allclose(pws.get_ydata(), [0.4, 0.3, NAN, 0.1], equal_nan=True)
    assert np.allclose(points(normal), [[1, 0.2], [10, 0.2]])
    assert entries == ['PWS (γ = 0.001, 1 value not finite)', 'Normal (γ = 0)']
    assert axes.get_title() == 'backbone.c'
    assert axes.get_xlabel() == 'training step'
    assert axes.get_ylabel() == 'min$_o$ Var[W$_o$]'


def test_figure_2_has_a_panel_for_each_layer(draw, work_dir):
    path = work_dir('PWS', inv_std_max=[[1, 2, 3, 500]])
    drawn, _ = draw(path, figure='2b', layers=['b$', r'^head\.'])
    assert [axes.get_title() for axes in drawn.axes] == ['backbone.b', 'head.d']
    assert [axes.lines[0].get_ydata()[0] for axes in drawn.axes] == [2, 500]
    assert drawn.axes[0].get_ylabel() == 'max$_o$ 1/√(Var[W$_o$] + γ)'


@pytest.mark.parametrize('greatest, scale', [(99, 'linear'), (101, 'log')])
def test_values_far_apart_get_a_log_axis(draw, work_dir, greatest, scale):
    path = work_dir('PWS', inv_std_max=np.array([[1], [greatest], [3], [4]]))
    drawn, _ = draw(path, figure='2b')
    assert drawn.axes[0].get_yscale() == scale


def test_equations_beside_what_is_measured(draw, work_dir):
    normal = work_dir('Normal', var_y=[[1, 2, 3, NAN]], var_y_eq5=2, var_y_eq6=3)
    drawn, entries = draw(normal, work_dir('PWS', var_y=5), figure='eq6', step=20)
    assert entries == ['measured', 'equation (5)', 'equation (6)']
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == ['Normal (step 20, 1 value not finite)', 'PWS (step 20)']
    first, second = (
        [line.get_ydata().tolist() for line in axes.lines] for axes in drawn.axes
    )
    assert first[0][:3] == [1, 2, 3] and math.isnan(first[0][3])
    assert first[1:] == [[2] * 4, [3] * 4]
    assert second == [[5] * 4, [1] * 4, [1] * 4]
    assert all(axes.get_yscale() == 'log' for axes in drawn.axes)
    assert drawn.axes[0].get_ylim() == drawn.axes[1].get_ylim()


def test_overview_over_depth_and_time(draw, work_dir):
    shift = np.logspace(-3, 3, 16).reshape(4, 4)
    shift[3, 1], shift[0, 0] = NAN, 0
    normal = work_dir('Normal', shift=shift, var_y=2)
    drawn, _ = draw(normal, work_dir('PWS', shift=1e-9, var_y=3), figure='layers')
    panels = [axes for axes in drawn.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        'Normal\n(1 value not finite)\n(1 is 0)',
        'PWS',
        'Normal',
        'PWS',
    ]
    meshes = [axes.collections[0] for axes in panels]
    values = meshes[0].get_array()  # layers by steps
    expected = np.where(shift > 0, shift, NAN).T
    assert np.allclose(values.filled(NAN), expected, rtol=1e-5, equal_nan=True)
    # a step lasts until the next one
    edges = meshes[0].get_coordinates()[0, :, 0]
    assert edges.tolist() == [1, 10, 20, 100, 180]
    assert meshes[0].norm is meshes[1].norm
    assert {mesh.get_cmap().name for mesh in meshes} == {'viridis'}
    first, last = panels[0].get_ylim()
    assert first > last, 'the first layer is below'


def test_the_overview_fits_on_a_page(draw, work_dir):
    names = [f'backbone.stages.{i}.0.conv' for i in range(27)]
    paths = [work_dir(label, names) for label in ('Normal', 'BN', 'WN', 'PWS')]
    drawn, _ = draw(*paths, figure='layers')
    assert drawn.get_figwidth() <= 10
    labels = drawn.axes[0].get_yticklabels()
    assert len(labels) == 27 and labels[0].get_fontsize() >= 7


@pytest.fixture
def main(load_program, monkeypatch):
    program = load_program('tools/analysis_tools/plot_variance.py')

    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['plot_variance.py', *map(str, args)])
        program.main()

    return run_main


@pytest.mark.parametrize('figure', ['1a', '1b', '2a', '2b', 'eq6', 'layers'])
def test_files(main, work_dir, tmp_path, figure):
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


def test_table_of_a_mean(main, work_dir, capsys):
    path = work_dir('PWS', **ratios(np.linspace(1, 2, 16).reshape(4, 4)))
    main(path, '--figure', '1a', '--table', '-')
    found = read_table(capsys.readouterr().out)
    assert len(found) == 4 * 3
    mean, low = 1 + (1 + 5) / 2 / 15, 1 + 1 / 15 - 0.1
    layer = ('PWS', '1-10', 'backbone.b')
    assert found[(*layer, 'var_ratio')] == pytest.approx(mean, rel=1e-5)
    assert found[(*layer, 'var_ratio_min')] == pytest.approx(low, rel=1e-5)


def test_table_of_the_course(main, work_dir, tmp_path, capsys):
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


def test_a_full_disk_leaves_the_old_table(main, work_dir, tmp_path, monkeypatch):
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
def test_damaged_records(main, work_dir, tmp_path, capsys, old, new, message):
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
