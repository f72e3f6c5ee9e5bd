"""Draw the figures of a report with plotly."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from .figures import (
    SYMBOLS,
    HeatMapRow,
    Line,
    course_figure,
    depth_slides,
    history_figure,
    overview_figure,
    validation_figure,
)
from .plot_style import COLORS, LINES, SIDE_STYLES
from .selection import Runs
from .training import Training

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
    from plotly.subplots import make_subplots
except ImportError as e:
    raise ImportError(f'pws-report needs plotly: pip install plotly ({e})') from e

MAX_STEPS = 100
CONFIG = dict(
    displaylogo=False,
    modeBarButtons=[['toImage', 'resetScale2d']],
    responsive=True,
    showSendToCloud=False,
)
INK = '#1b1f24'
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
DASHES = dict(zip(LINES, ('solid', 'dash', 'dashdot', 'dot'), strict=True))


class Chart(NamedTuple):
    """A chart of the page.

    Args:
        figure: The figure of plotly. The ``meta`` of a trace is the position of its
            training, by which the page's legend finds it.
        min_width: In pixels. On a narrower page the reader scrolls the chart.
        notes: Remarks on the lines, as text.
    """

    figure: go.Figure
    min_width: int = 0
    notes: Sequence[str] = ()


def draw(name: str, make: Callable[..., Chart], *args) -> str:
    """Return a chart as HTML, or the reason why there is no chart.

    Args:
        name: Name of the chart. Its element is ``figure-NAME``.
        make: Makes the chart from ``args``.
        *args: The arguments of ``make``.
    """
    try:
        figure, min_width, notes = make(*args)
    except ValueError as e:
        return f'<p class="missing">{escape(str(e))}</p>'
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,  # it is in the head of the page: plotly_script
        div_id=f'figure-{name}',
        config=CONFIG,
    )
    width = f' style="min-width: {min_width}px"' if min_width else ''
    remarks = f'<p class="note">{escape("; ".join(notes))}</p>' if notes else ''
    return f'<div class="scroll"><div{width}>{html}</div></div>{remarks}'


def plotly_script() -> str:
    """Return the JavaScript of plotly, which a page needs once."""
    return get_plotlyjs()


def history_chart(trainings: Sequence[Training], name: str) -> Chart:
    """Draw 'loss' or 'lr' against the training step.

    Raises:
        ValueError: If there is no value to draw.
    """
    data = history_figure(trainings, name)
    lines = data.panels[0].lines
    chart = go.Figure([_trace(i, n.run, n.x, n.y) for i, n in enumerate(lines)])
    chart.update_xaxes(title=data.x_label)
    _style(chart, 320, {'lr': 'learning rate'}.get(name, name), data.log)
    return Chart(chart.update_layout(margin_t=30), notes=_notes(lines))


def validation_chart(trainings: Sequence[Training]) -> Chart:
    """Draw a metric against the epoch, with a menu of all metrics.

    Raises:
        ValueError: If no training came to a second validation.
    """
    data = validation_figure(trainings)
    first = data.panels[0]
    chart = go.Figure([_trace(i, n.run, n.x, n.y) for i, n in enumerate(first.lines)])
    buttons = [
        dict(
            method='update',
            label=panel.title,
            args=[
                dict(y=[_numbers(line.y) for line in panel.lines]),
                {'yaxis.title.text': panel.title},
            ],
        )
        for panel in data.panels
    ]
    place = dict(x=0, y=1, xanchor='left', yanchor='bottom', pad=dict(b=10))
    chart.update_layout(updatemenus=[dict(buttons=buttons, **place)])
    epochs = sorted({epoch for line in first.lines for epoch in line.x})
    if len(epochs) <= 15:  # no ticks between epochs
        chart.update_xaxes(tickvals=epochs)
    chart.update_xaxes(title=data.x_label)
    return Chart(_style(chart, 380, first.title))


def depth_chart(runs: Runs, name: str, order: Sequence[str]) -> Chart:
    """Draw figure 1a or 1b: a line for each training, a slider through the steps.

    Args:
        runs: Records.
        name: Name of the figure.
        order: The labels of all trainings of the page, in the order of their colours.

    Raises:
        ValueError: If the trainings cannot be compared, or there is no value to draw.
    """
    steps = _shown_steps(runs)
    slides = depth_slides(runs, name, steps)

    def data(position: int) -> dict[str, list[np.ndarray]]:
        lines = slides[position].panels[0].lines
        values = dict(y=[line.y for line in lines])
        bands = [(line.y, *line.band) for line in lines if line.band is not None]
        if not bands:
            return values
        below = [np.abs(low - y) for y, low, _ in bands]
        above = [np.abs(high - y) for y, _, high in bands]
        return {**values, 'error_y.arrayminus': below, 'error_y.array': above}

    chart = go.Figure()
    lines = slides[0].panels[0].lines
    for line in lines:
        trace = _trace(order.index(line.run), line.run, line.x)
        chart.add_trace(trace.update(error_y=dict(symmetric=False, thickness=1)))
    _name_layers(chart, slides[0].layers)
    _add_slider(chart, steps, 'step ', data, _first_shown(steps))
    _style(chart, 560, symbol(slides[0].statistic), slides[0].log)
    return Chart(chart, _depth_width(slides[0].layers), _notes(lines))


def equations_chart(runs: Runs) -> Chart:
    """Draw figure eq6: a panel for each training, a slider through the steps.

    Raises:
        ValueError: If there is no value to draw.
    """
    steps = _shown_steps(runs)
    slides = depth_slides(runs, 'eq6', steps)

    def data(position: int) -> dict[str, list[np.ndarray]]:
        return dict(y=[line.y for p in slides[position].panels for line in p.lines])

    chart = make_subplots(
        len(runs),
        1,
        shared_xaxes='all',
        shared_yaxes='all',
        subplot_titles=[escape(panel.title) for panel in slides[0].panels],
        vertical_spacing=0.2 / len(runs),
    )
    for row, panel in enumerate(slides[0].panels, 1):
        for line, (color, dash, _) in zip(panel.lines, SIDE_STYLES, strict=True):
            trace = _trace(None, line.label, line.x)
            trace.line = dict(color=color, dash=DASHES[dash])
            trace.update(legendgroup=line.label, showlegend=row == 1)
            chart.add_trace(trace, row, 1)
    _name_layers(chart, slides[0].layers)
    _add_slider(chart, steps, 'step ', data, _first_shown(steps))
    _style(chart, 380 + 220 * len(runs), symbol(slides[0].statistic), slides[0].log)
    legend = dict(orientation='h', x=0, y=0, yanchor='bottom', yref='container')
    chart.update_layout(showlegend=True, legend=legend, margin_b=80)
    return Chart(chart, _depth_width(slides[0].layers))


def course_chart(runs: Runs, name: str, order: Sequence[str]) -> Chart:
    """Draw figure 2a or 2b: a line for each training, a slider through the layers.

    Args:
        runs: Records.
        name: Name of the figure.
        order: The labels of all trainings of the page, in the order of their colours.

    Raises:
        ValueError: If the trainings cannot be compared, or there is no value to draw.
    """
    figure = course_figure(runs, name)

    def thinned(line: Line) -> Line:
        rows = thin(len(line.x))
        return Line(line.label, [line.x[i] for i in rows], line.y[rows])

    def data(position: int) -> dict[str, list[np.ndarray]]:
        return dict(y=[thinned(line).y for line in figure.panels[position].lines])

    chart = go.Figure()
    for run, record in runs.items():
        steps = record.steps[thin(len(record.steps))].tolist()
        chart.add_trace(_trace(order.index(run), run, steps))
    chart.update_xaxes(title=figure.x_label)
    active = min(2, len(figure.layers) - 1)  # the paper shows the third convolution
    _add_slider(chart, figure.layers, 'layer ', data, active)
    _style(chart, 480, symbol(figure.statistic), figure.log)
    return Chart(chart, notes=_notes(figure.panels[0].lines))


def overview_chart(runs: Runs) -> Chart:
    """Draw figure layers: a column for each training, a row for each statistic.

    Raises:
        ValueError: If a statistic has no value to draw.
    """
    chart = make_subplots(
        2,
        len(runs),
        subplot_titles=[escape(label) for label in runs],
        shared_xaxes='all',
        shared_yaxes='all',
        vertical_spacing=0.05,
    )
    for row, heat_maps in enumerate(overview_figure(runs), 1):
        _add_colors(chart, row, heat_maps)
        for column, heat_map in enumerate(heat_maps.maps, 1):
            shown = thin(len(heat_map.steps))
            values = heat_map.values[:, shown]
            trace = go.Heatmap(
                x=heat_map.steps[shown].tolist(),
                y=heat_map.layers,
                z=[_numbers(np.log10(v)) for v in values],
                customdata=[_numbers(v) for v in values],
                coloraxis=f'coloraxis{row}',
                hovertemplate='step %{x}<br>%{y}<br>%{customdata:.5g}<extra></extra>',
            )
            chart.add_trace(trace, row, column)
    depth = max(len(record.layers) for record in runs.values())
    chart.update_yaxes(autorange='reversed', type='category', dtick=1)
    chart.update_xaxes(title='training step', row=2)
    _style(chart, 160 + 2 * max(240, 14 * depth))
    chart.update_layout(hovermode='closest', plot_bgcolor='#d9d9d9')
    return Chart(chart, 240 + 200 * len(runs))


def symbol(statistic: str) -> str:
    """Return the symbol of a statistic as HTML."""
    return SYMBOLS[statistic].replace('_o', '<sub>o</sub>')


def thin(count: int) -> np.ndarray:
    """Return at most MAX_STEPS of the indices 0 to count - 1, with both ends."""
    return np.linspace(0, count - 1, min(count, MAX_STEPS)).round().astype(int)


def _shown_steps(runs: Runs) -> list[int]:
    """Return the watched steps that a slider goes through."""
    steps = sorted(set().union(*(record.steps.tolist() for record in runs.values())))
    return [steps[i] for i in thin(len(steps))]


def _first_shown(steps: Sequence[int]) -> int:
    """Return the position of a step after the warm-up, where steps are small."""
    return next(i for i, step in enumerate(steps) if step >= steps[-1] / 10)


def _numbers(values: np.ndarray | Sequence[float]) -> list[float | None]:
    """Return numbers for JSON: five digits, and None for NaN."""
    return [None if math.isnan(v) else float(f'{v:.5g}') for v in np.asarray(values)]


def _notes(lines: Sequence[Line]) -> list[str]:
    """Return the labels that have remarks."""
    return [line.label for line in lines if line.label != line.run]


def _depth_width(layers: Sequence[str]) -> int:
    """Return the least width of a chart that names layers below its x axis."""
    return 130 + 15 * len(layers)


def _trace(
    index: int | None,
    name: str,
    x: Sequence[Any],
    y: np.ndarray | Sequence[float] = (),
) -> go.Scatter:
    """Return the line of the training of that index, or a line without a colour."""
    line = dict()
    if index is not None:
        color, dash = run_style(index)
        line = dict(color=color, dash=dash)
    return go.Scatter(
        x=x,
        y=_numbers(y),
        name=escape(name),
        meta=index,
        line=line,
        mode='lines+markers',
        marker_size=6,
        hovertemplate='%{y:.5g}',
    )


def run_style(index: int) -> tuple[str, str]:
    """Return the colour and plotly's dash of the training of that index."""
    return COLORS[index % len(COLORS)], DASHES[LINES[index % len(LINES)]]


def _style(
    chart: go.Figure, height: int, y_title: str | None = None, log: bool = False
) -> go.Figure:
    """Set the options that all charts of the page share."""
    chart.update_xaxes(automargin=True)
    chart.update_yaxes(title=y_title, exponentformat='power', automargin=True)
    if log:
        chart.update_yaxes(type='log')
    return chart.update_layout(
        template='plotly_white',
        font=dict(color=INK, family=FONT, size=13),
        height=height,
        hovermode='x unified',
        margin=dict(l=55, r=10, t=50, b=45),
        showlegend=False,  # the page has one legend for all charts
    )


def _add_slider(
    chart: go.Figure,
    names: Sequence[Any],
    prefix: str,
    data: Callable[[int], dict[str, list[np.ndarray]]],
    active: int = 0,
) -> None:
    """Put a slider above a chart. It changes the data of the traces.

    Args:
        chart: The chart with its traces.
        names: The names of the positions.
        prefix: Text before the name of the current position.
        data: Returns, for a position, the attributes that change: an array for each
            trace.
        active: The first position.
    """
    steps = []
    for i, name in enumerate(names):
        found = {key: list(map(_numbers, arrays)) for key, arrays in data(i).items()}
        steps.append(dict(method='restyle', label=str(name), args=[found]))
        if i == active:
            for key, arrays in found.items():
                for trace, array in zip(chart.data, arrays, strict=True):
                    trace[key] = array
    place = dict(x=0, y=1, yanchor='bottom', pad=dict(b=35), len=0.95)
    slider = dict(steps=steps, active=active, currentvalue_prefix=prefix, **place)
    chart.update_layout(sliders=[slider])


def _name_layers(chart: go.Figure, names: Sequence[str]) -> None:
    """Name the layers on the x axes, from the first layer to the last."""
    chart.update_xaxes(
        tickangle=-90, dtick=1, categoryorder='array', categoryarray=names
    )
    [*_, last] = chart.select_xaxes()
    last.title = 'layer'


def _add_colors(chart: go.Figure, row: int, heat_maps: HeatMapRow) -> None:
    """Add the colours of a row, and their bar."""
    low, high = np.log10([heat_maps.low, heat_maps.high])
    ticks = np.arange(math.ceil(low), math.floor(high) + 1)
    ticks = ticks[:: len(ticks) // 6 + 1].tolist()
    bar = dict(
        title=symbol(heat_maps.statistic),
        tickvals=ticks,
        ticktext=[f'10<sup>{tick}</sup>' for tick in ticks],
        y=1.25 - 0.5 * row,
        len=0.5,
    )
    colors = dict(colorscale='Viridis', cmin=low, cmax=high, colorbar=bar)
    chart.update_layout({f'coloraxis{row}': colors})
