import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from variance_data import NAMES, ratios, write_record

from pws_mmdet.analysis.plots import plot_variance

NAN = math.nan
STEPS = (1, 10, 20, 100)


@pytest.fixture
def work_dir(tmp_path):
    """Write the record of a training; return the path of its work_dir."""

    def write(label, names=NAMES, steps=STEPS, **options):
        return write_record(tmp_path / label, steps, names, **options)

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


def test_figure_1a_shows_the_mean_of_the_first_steps_in_a_band(draw, work_dir):
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


def test_a_step_means_the_nearest_watched_step(draw, work_dir):
    shift = np.array(STEPS)[:, None] * np.ones(4)
    first = work_dir('first', shift=shift)
    drawn, entries = draw(first, figure='1b', step=18)
    assert drawn.axes[0].lines[0].get_ydata().tolist() == [20] * 4
    assert drawn.axes[0].get_xlabel() == 'layer (step 20)'
    assert entries == ['first']
    second = work_dir('second', steps=(2, 7, 13, 14))
    _, entries = draw(first, second, figure='1b', step=18)
    assert entries == ['first (step 20)', 'second (step 14)']


def test_the_first_tenth_is_that_of_the_longest_training(draw, work_dir):
    long = work_dir('long', steps=(1, 50, 99, 1000))
    short = work_dir('short', steps=(1, 50, 99, 101))
    _, entries = draw(long, short, figure='1b')
    assert entries == ['long', 'short']
    late = work_dir('late', steps=(500, 600, 700, 800))
    _, entries = draw(long, late, figure='1b')
    assert entries == ['long (mean of steps 1 to 99)', 'late (step 500)']


def test_nan_and_zero_are_gaps_on_a_log_axis(draw, work_dir):
    values = [[0.01, NAN, 1e3, 0], [0.03, 2, NAN, 0], [0] * 4, [0] * 4]
    path = work_dir('Normal', shift=values)
    gone = work_dir('gone', shift=NAN)
    drawn, entries = draw(path, gone, figure='1b')
    [axes] = drawn.axes
    assert axes.get_yscale() == 'log'
    assert axes.get_ylabel() == 'Var$_o$[n E[ΔW$_o$]]'
    # the mean of the finite values
    expected = [0.02, 2, 1e3, NAN]
    assert np.allclose(axes.lines[0].get_ydata(), expected, equal_nan=True)
    assert np.isnan(axes.lines[1].get_ydata()).all()
    assert entries == [
        'Normal (2 values not finite, 2 are 0)',
        'gone (8 values not finite)',
    ]


def test_layers_of_two_models_are_matched_by_name(draw, work_dir):
    whole = work_dir('whole')
    part = work_dir('part', ('backbone.b', 'neck.x', 'head.d'), shift=[[1, 2, 3]])
    drawn, _ = draw(whole, part, figure='1b')
    [axes] = drawn.axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ['backbone.a', 'backbone.b', 'neck.x', 'backbone.c', 'head.d']
    assert points(axes.lines[0]) == [[0, 1], [1, 1], [3, 1], [4, 1]]
    assert points(axes.lines[1]) == [[1, 1], [2, 2], [4, 3]]


@pytest.mark.parametrize('figure', ['1a', '1b', '2a', '2b'])
def test_one_panel_for_different_models_is_an_error(draw, work_dir, figure):
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
def test_separate_panels_may_show_different_models(draw, work_dir, figure):
    other = work_dir('other', ('conv1', 'conv2'))
    drawn, _ = draw(work_dir('first'), other, figure=figure)
    labels = [
        label.get_text()
        for axes in drawn.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    assert {*NAMES, 'conv1', 'conv2'} <= set(labels)


def test_figure_2_shows_the_third_layer(draw, work_dir):
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
def test_a_factor_of_more_than_100_needs_a_log_axis(draw, work_dir, greatest, scale):
    path = work_dir('PWS', inv_std_max=np.array([[1], [greatest], [3], [4]]))
    drawn, _ = draw(path, figure='2b')
    assert drawn.axes[0].get_yscale() == scale


def test_figure_eq6_has_a_panel_for_each_training(draw, work_dir):
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


def test_figure_layers_shows_values_as_colours(draw, work_dir):
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


def test_figure_layers_fits_on_a_page(draw, work_dir):
    names = [f'backbone.stages.{i}.0.conv' for i in range(27)]
    paths = [work_dir(label, names) for label in ('Normal', 'BN', 'WN', 'PWS')]
    drawn, _ = draw(*paths, figure='layers')
    assert drawn.get_figwidth() <= 10
    labels = drawn.axes[0].get_yticklabels()
    assert len(labels) == 27 and labels[0].get_fontsize() >= 7
