"""Write a report of trainings: one HTML file, to be opened without a network.

It shows the loss, the learning rate and the validations of each WORK_DIR and, where
VarianceMonitorHook was in the training, the figures of plot_variance.py: Figures 1
and 2 of the PWS paper and both sides of its equations (5) and (6). A slider goes
through the training steps, or through the layers, and the mouse shows the values.
Last come pictures of detections, if MMDetection drew some into the work_dir.

Of more than 100 watched steps, 100 are shown, the first and the last among them.
"""

import argparse
import base64
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from plot_variance import (
    FIGURES,
    SIDES,
    SYMBOLS,
    Runs,
    check_alike,
    color_range,
    drawable,
    gamma_text,
    gaps,
    is_log,
    legend_entry,
    merge_names,
    name_runs,
    values_of,
)

from pws_mmdet.analysis import VarianceRecord, read_record, read_scalars
from pws_mmdet.analysis.plot_style import COLORS, LINES
from pws_mmdet.utils.files import write_whole

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
    from plotly.subplots import make_subplots
except ImportError as e:
    sys.exit(f"report.py needs plotly: pip install -e '.[report]' ({e})")

MAX_STEPS = 100
PICTURE_SIDE = 640  # pixels
DASHES = dict(zip(LINES, ('solid', 'dash', 'dashdot', 'dot'), strict=True))
DIVERGED = re.compile(r'Training diverged at iteration (\d+)')
TIMESTAMP = re.compile(r'\d{8}_\d{6}')  # what MMEngine calls the folder of a run

STYLE = """
body { font: 16px/1.5 sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; }
th, td { border: 1px solid #ccc; padding: .3em .7em; text-align: left; }
thead { background: #f3f3f3; }
strong, .missing { color: #a33c00; }
figure { display: inline-block; margin: 0 1em 1em 0; }
figure img { display: block; max-width: 100%; }
figcaption { font-size: .8em; color: #666; }
"""


@dataclass(frozen=True)
class Training:
    """What a work_dir tells of a training.

    Args:
        label: Its name in the report.
        path: The work_dir.
        steps: The S training steps that were logged.
        loss: Loss at each, NaN where it is not finite.
        lr: Learning rate at each.
        curve: Metrics of each validated epoch.
        record: What VarianceMonitorHook measured, or the reason why there is none.
        pictures: Pictures of detections.
        is_logged: Whether loss and learning rate are from MMEngine's log; else they
            are from the record.
        lacks_pictures: Whether there were none to choose from.
    """

    label: str
    path: Path
    steps: list[int]
    loss: list[float]
    lr: list[float]
    curve: dict[int, dict[str, float]]
    record: VarianceRecord | str
    pictures: list[Path]
    is_logged: bool
    lacks_pictures: bool

    @property
    def config(self) -> str:
        """The name of the config, which MMEngine copies into the work_dir."""
        paths = sorted(self.path.glob('*.py'), key=lambda path: path.stat().st_mtime)
        return paths[-1].stem if paths else 'unknown'

    @property
    def hardware(self) -> str:
        """Device, processes and PyTorch, as far as MMEngine's log has them."""
        logs = sorted(self.path.glob('*/*.log'))
        if not logs:
            return 'unknown'
        text = logs[-1].read_text(encoding='utf-8', errors='replace')
        found = re.findall(r'^ +GPU [\d,]+: (.+)$', text, re.MULTILINE)
        if not found and 'CUDA available: False' in text:
            found = ['CPU']
        for pattern, words in (
            (r'^ +GPU number: (\d+)', 'processes: {}'),
            (r'^ +PyTorch: (\S+)', 'PyTorch {}'),
        ):
            found += map(words.format, re.findall(pattern, text, re.MULTILINE)[-1:])
        return ', '.join(found) or 'unknown'

    @property
    def divergence(self) -> str | None:
        """How it diverged, if it did."""
        # console.log of tools/misc/run_table.py, and MMEngine's own
        for log in [*self.path.glob('*.log'), *self.path.glob('*/*.log')]:
            text = log.read_text(encoding='utf-8', errors='replace')
            for iteration in DIVERGED.findall(text)[-1:]:
                # unless it was started anew and came further
                if not self.steps or int(iteration) >= self.steps[-1]:
                    return f'diverged at iteration {iteration}'
        if self.loss and math.isnan(self.loss[-1]):
            finite = [i for i, loss in enumerate(self.loss) if not math.isnan(loss)]
            first = self.steps[finite[-1] + 1 if finite else 0]
            return f'diverged: loss not finite from step {first}'
        return None


def read(label: str, work_dir: Path, folder: Path | None, pictures: int) -> Training:
    """Read a work_dir.

    Args:
        label: Name of the training.
        work_dir: The folder.
        folder: Where to take pictures from instead.
        pictures: How many to take.

    Raises:
        ValueError: If it holds neither a log nor a record of VarianceMonitorHook.
        OSError: If it cannot be read.
    """
    try:
        record = read_record(work_dir)
    except ValueError as e:
        record = str(e)
    try:
        scalars = read_scalars(work_dir)
        entries, curve = scalars.training, scalars.validations
    except ValueError:
        if isinstance(record, str):
            raise
        entries, curve = {}, {}
    steps = list(entries)
    loss = [finite(entry.get('loss')) for entry in entries.values()]
    lr = [finite(entry['lr']) for entry in entries.values()]
    is_logged = bool(steps) or isinstance(record, str)
    if not is_logged:  # it ended before its first log
        steps, loss, lr = (v.tolist() for v in (record.steps, record.loss, record.lr))
    found = find_images(work_dir, folder)
    chosen = found[max(0, len(found) - pictures) :]
    return Training(
        label,
        work_dir,
        steps,
        loss,
        lr,
        curve,
        record,
        chosen,
        is_logged,
        lacks_pictures=not found,
    )


def finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def find_images(work_dir: Path, folder: Path | None = None) -> list[Path]:
    """Return the pictures that MMDetection drew, later steps last.

    They are below the folders that MMEngine names by the time: in
    vis_data/vis_image, or where --show-dir of tools/test.py put them.

    Args:
        work_dir: The work_dir.
        folder: Take those below this folder instead.

    Raises:
        ValueError: If ``folder`` holds none.
    """
    root = folder or work_dir
    found = [
        path
        for path in root.rglob('*')
        if path.suffix.lower() in ('.png', '.jpg', '.jpeg')
        and (folder or any(map(TIMESTAMP.fullmatch, path.relative_to(root).parts)))
    ]
    if folder and not found:
        raise ValueError(f'{folder} holds no image (.png, .jpg)')

    def numbers_apart(path: Path) -> list[str | int]:
        parts = re.split(r'(\d+)', str(path.relative_to(root)))
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(found, key=numbers_apart)


def embed(path: Path) -> str:
    """Return a picture, scaled down, as HTML.

    Raises:
        ValueError: If it is none.
    """
    picture = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f'{path} is no image')
    scale = PICTURE_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    data = base64.b64encode(jpeg.tobytes()).decode()
    name = escape(path.name)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
        f'<figcaption>{name}</figcaption></figure>'
    )


def thin(count: int) -> np.ndarray:
    """Return at most MAX_STEPS of the indices 0 to count - 1, the ends among them."""
    return np.linspace(0, count - 1, min(count, MAX_STEPS)).round().astype(int)


def plain(values: np.ndarray | Sequence[float]) -> list:
    """Return numbers for JSON: five digits, None for NaN."""
    return [None if math.isnan(v) else float(f'{v:.5g}') for v in np.asarray(values)]


def symbol(statistic: str) -> str:
    return SYMBOLS[statistic].replace('_o', '<sub>o</sub>')


def line(index: int, name: str, x: Sequence, y: Sequence = ()) -> go.Scatter:
    """Return the line of the training of that index."""
    color, dash = COLORS[index % len(COLORS)], DASHES[LINES[index % len(LINES)]]
    return go.Scatter(
        x=x,
        y=plain(y),
        name=escape(name),
        line=dict(color=color, dash=dash),
        mode='lines+markers',
        marker_size=5,
        hovertemplate='%{y:.5g}',
    )


def chart(
    figure: go.Figure, height: int, y_title: str | None = None, log: bool = False
) -> go.Figure:
    """Give a figure the looks that all of the page have."""
    figure.update_yaxes(title=y_title, exponentformat='power')
    if log:
        figure.update_yaxes(type='log')
    return figure.update_layout(
        template='plotly_white',
        height=height,
        hovermode='x unified',
        margin=dict(l=70, r=20, t=50, b=50),
        showlegend=True,
    )


def add_slider(
    figure: go.Figure,
    names: Sequence,
    prefix: str,
    data: Callable[[int], dict[str, list[np.ndarray]]],
    active: int = 0,
) -> None:
    """Put a slider above a figure that changes the data of its traces.

    Args:
        figure: The figure, with its traces.
        names: The positions.
        prefix: What they are, before the name of the one chosen.
        data: The attributes that change, an array for each trace, at a position.
        active: The position to begin with.
    """
    steps = []
    for i, name in enumerate(names):
        found = {key: list(map(plain, arrays)) for key, arrays in data(i).items()}
        steps.append(dict(method='restyle', label=str(name), args=[found]))
        if i == active:
            for key, arrays in found.items():
                for trace, array in zip(figure.data, arrays, strict=True):
                    trace[key] = array
    place = dict(x=0, y=1, yanchor='bottom', pad=dict(b=35))
    slider = dict(steps=steps, active=active, currentvalue_prefix=prefix, **place)
    figure.update_layout(sliders=[slider])


def history_chart(trainings: Sequence[Training], name: str) -> go.Figure:
    """Plot 'loss' or 'lr' against the training step.

    Raises:
        ValueError: If there is no value to draw.
    """
    figure = go.Figure()
    values = [np.array(getattr(training, name)) for training in trainings]
    log = is_log(name, values) and name == 'loss'
    for i, (training, y) in enumerate(zip(trainings, values, strict=True)):
        label = legend_entry(training.label, gaps([y], log))
        figure.add_trace(line(i, label, training.steps, drawable(y, log)))
    figure.update_xaxes(title='training step')
    return chart(figure, 420, name, log)


def metrics_of(trainings: Sequence[Training]) -> list[str]:
    """Return the names of all metrics, mAP first."""
    names = {name for t in trainings for values in t.curve.values() for name in values}
    return sorted(names, key=lambda name: (not name.endswith('mAP'), name))


def score(values: dict[str, float], metric: str) -> float:
    """Return a metric; NaN if missing, as is COCO's -1, where there was no object."""
    value = values.get(metric, -1)
    return math.nan if value == -1 else value


def validation_chart(trainings: Sequence[Training]) -> go.Figure:
    """Plot the metric that one chooses against the epoch.

    Raises:
        ValueError: If there is none.
    """
    figure, metrics = go.Figure(), metrics_of(trainings)
    if not metrics:
        raise ValueError('none of the trainings came to a validation')
    for metric in metrics:
        for i, training in enumerate(trainings):
            epochs = sorted(training.curve)
            y = [score(training.curve[epoch], metric) for epoch in epochs]
            trace = line(i, training.label, epochs, y)
            figure.add_trace(trace.update(visible=metric == metrics[0]))
    buttons = [
        dict(
            method='update',
            label=metric,
            args=[
                dict(visible=[m == metric for m in metrics for _ in trainings]),
                {'yaxis.title.text': metric},
            ],
        )
        for metric in metrics
    ]
    place = dict(x=0, y=1, xanchor='left', yanchor='bottom', pad=dict(b=10))
    figure.update_layout(updatemenus=[dict(buttons=buttons, **place)])
    figure.update_xaxes(title='epoch')
    return chart(figure, 420, metrics[0])


def shown_steps(runs: Runs) -> list[int]:
    """Return the watched steps that sliders go through."""
    steps = sorted(set().union(*(record.steps.tolist() for record in runs.values())))
    return [steps[i] for i in thin(len(steps))]


def at_step(record: VarianceRecord, statistic: str, step: int) -> np.ndarray:
    """Return a statistic of each layer, (L,), at the watched step next to one.

    After the last step of a training, all are NaN.
    """
    row = record.values[statistic][np.abs(record.steps - step).argmin()]
    return row if step <= record.steps[-1] else np.full_like(row, np.nan)


def name_layers(figure: go.Figure, runs: Runs) -> None:
    """Name the layers of all trainings, from the first to the last, on the x axes."""
    names = merge_names(runs.values())
    figure.update_xaxes(
        tickangle=-90, dtick=1, categoryorder='array', categoryarray=names
    )
    [*_, last] = figure.select_xaxes()
    last.title = 'layer'


def depth_chart(runs: Runs, name: str) -> go.Figure:
    """Plot figure 1a or 1b: a line for each training over the layers.

    Raises:
        ValueError: If the models have nothing in common, or there is no value.
    """
    check_alike(runs)
    log = is_log(name, values_of(runs, *FIGURES[name]))
    steps = shown_steps(runs)

    def data(position: int) -> dict[str, list[np.ndarray]]:
        y, *ends = (
            [drawable(at_step(r, s, steps[position]), log) for r in runs.values()]
            for s in FIGURES[name]
        )
        if not ends:
            return dict(y=y)
        below, above = (
            [np.abs(end - mean) for end, mean in zip(rows, y, strict=True)]
            for rows in ends
        )
        return {'y': y, 'error_y.arrayminus': below, 'error_y.array': above}

    figure = go.Figure()
    for i, (label, record) in enumerate(runs.items()):
        label = legend_entry(label, gaps([record.values[FIGURES[name][0]]], log))
        trace = line(i, label, [layer.name for layer in record.layers])
        figure.add_trace(trace.update(error_y=dict(symmetric=False, thickness=1)))
    name_layers(figure, runs)
    add_slider(figure, steps, 'step ', data)
    return chart(figure, 560, symbol(FIGURES[name][0]), log)


def equations_chart(runs: Runs) -> go.Figure:
    """Plot figure eq6: a panel for each training over the layers.

    Raises:
        ValueError: If there is no value.
    """
    log = is_log('eq6', values_of(runs, *SIDES))
    steps = shown_steps(runs)

    def data(position: int) -> dict[str, list[np.ndarray]]:
        rows = (
            at_step(record, side, steps[position])
            for record in runs.values()
            for side in SIDES
        )
        return dict(y=[drawable(row, log) for row in rows])

    titles = [
        escape(legend_entry(label, gaps([r.values[s] for s in SIDES], log)))
        for label, r in runs.items()
    ]
    figure = make_subplots(
        len(runs),
        1,
        shared_xaxes='all',
        shared_yaxes='all',
        subplot_titles=titles,
        vertical_spacing=0.2 / len(runs),
    )
    for row, record in enumerate(runs.values(), 1):
        for side, color, dash, _ in SIDES.values():
            trace = line(0, side, [layer.name for layer in record.layers])
            trace.line = dict(color=color, dash=DASHES[dash])
            trace.update(legendgroup=side, showlegend=row == 1)
            figure.add_trace(trace, row, 1)
    name_layers(figure, runs)
    add_slider(figure, steps, 'step ', data)
    return chart(figure, 300 + 220 * len(runs), symbol('var_y'), log)


def course_chart(runs: Runs, name: str) -> go.Figure:
    """Plot figure 2a or 2b: a line for each training in the course of it.

    Raises:
        ValueError: If the models have nothing in common, or there is no value.
    """
    check_alike(runs)
    [statistic] = FIGURES[name]
    log = is_log(name, values_of(runs, statistic))
    names = merge_names(runs.values())

    def data(position: int) -> dict[str, list[np.ndarray]]:
        y = []
        for record in runs.values():
            columns = [layer.name == names[position] for layer in record.layers]
            values = record.values[statistic][thin(len(record.steps))][:, columns]
            y.append(drawable(values.ravel(), log))
        return dict(y=y)

    figure = go.Figure()
    for i, (label, record) in enumerate(runs.items()):
        remarks = [gamma_text(record), *gaps([record.values[statistic]], log)]
        label = legend_entry(label, remarks)
        figure.add_trace(line(i, label, record.steps[thin(len(record.steps))].tolist()))
    figure.update_xaxes(title='training step')
    add_slider(figure, names, 'layer ', data, active=min(2, len(names) - 1))
    return chart(figure, 480, symbol(statistic), log)


def overview_chart(runs: Runs) -> go.Figure:
    """Plot figure layers: a column for each training, a row for each statistic.

    Raises:
        ValueError: If there is no value.
    """
    titles = [escape(label) for label in runs]
    figure = make_subplots(
        2,
        len(runs),
        subplot_titles=titles,
        shared_xaxes='all',
        shared_yaxes='all',
        vertical_spacing=0.05,
    )
    for row, statistic in enumerate(FIGURES['layers'], 1):
        values = values_of(runs, statistic)
        log = is_log('layers', values)
        low, high = np.log10(color_range(values))
        ticks = np.arange(math.ceil(low), math.floor(high) + 1)
        ticks = ticks[:: len(ticks) // 6 + 1].tolist()
        bar = dict(
            title=symbol(statistic),
            tickvals=ticks,
            ticktext=[f'10<sup>{tick}</sup>' for tick in ticks],
            y=1.25 - 0.5 * row,
            len=0.5,
        )
        colors = dict(colorscale='Viridis', cmin=low, cmax=high, colorbar=bar)
        figure.update_layout({f'coloraxis{row}': colors})
        for column, record in enumerate(runs.values(), 1):
            rows = thin(len(record.steps))
            values = drawable(record.values[statistic][rows], log).T
            trace = go.Heatmap(
                x=record.steps[rows].tolist(),
                y=[layer.name for layer in record.layers],
                z=[plain(np.log10(v)) for v in values],
                customdata=[plain(v) for v in values],
                coloraxis=f'coloraxis{row}',
                hovertemplate='step %{x}<br>%{y}<br>%{customdata:.5g}<extra></extra>',
            )
            figure.add_trace(trace, row, column)
    depth = max(len(record.layers) for record in runs.values())
    figure.update_yaxes(autorange='reversed', type='category', dtick=1)
    figure.update_xaxes(title='training step', row=2)
    return chart(figure, 160 + 2 * max(240, 14 * depth)).update_layout(
        hovermode='closest', plot_bgcolor='#d9d9d9'
    )


FIGURE_TEXTS = {
    '1a': (
        'Figure 1(a): what a step does to the variance of the filters',
        f'{symbol("var_ratio")} of every layer: the mean over its filters, with bars '
        'from the least to the greatest. The paper shows the beginning of training.',
    ),
    '1b': (
        'Figure 1(b): the shift of the average gradient',
        f'{symbol("shift")} of every layer: how far apart a step moves the means of '
        'its filters. The paper shows the beginning of training.',
    ),
    '2a': (
        'Figure 2(a): the least variance of the filters of a layer',
        f'{symbol("var_w_min")} in the course of training. The paper shows the third '
        'convolution.',
    ),
    '2b': (
        'Figure 2(b): the greatest factor of the filters of a layer',
        f'{symbol("inv_std_max")} in the course of training; γ is 0 in convolutions '
        'that have none. The paper shows the third convolution.',
    ),
    'eq6': (
        'Equations (5) and (6): the variance of the outputs',
        f'{symbol("var_y")} of every layer, measured, and as the equations have it '
        'from the inputs and the filters.',
    ),
    'layers': (
        'Overview over depth and time',
        f'{symbol("shift")} above and {symbol("var_y")} below, of every layer (from '
        'the first one down) at every step; in grey what is not finite, 0, or not '
        'watched. The colours end at the percentiles 1 and 99.',
    ),
}


def draw(name: str, make: Callable[..., go.Figure], *args) -> str:
    """Return a figure as HTML, or the reason why there is none."""
    try:
        figure = make(*args)
    except ValueError as e:
        return f'<p class="missing">{escape(str(e))}</p>'
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,  # it is in the head of the page
        div_id=f'figure-{name}',
        config=dict(displaylogo=False, responsive=True, showSendToCloud=False),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML, of cells that are HTML."""
    top = ''.join(f'<th>{cell}</th>' for cell in head)
    body = '\n'.join(
        f'<tr><th>{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>'


def heading(training: Training) -> str:
    """Return the name of a training, and how it diverged if it did."""
    name, divergence = escape(training.label), training.divergence
    return f'{name}<br><strong>{divergence}</strong>' if divergence else name


def overview_table(trainings: Sequence[Training]) -> str:
    """Say what the trainings are."""
    rows = []
    for t in trainings:
        watched = '–' if isinstance(t.record, str) else len(t.record.steps)
        cells = (t.config, t.steps[-1] if t.steps else 0, watched, t.hardware)
        rows.append([heading(t), *(escape(str(cell)) for cell in cells)])
    head = ('training', 'config', 'last logged step', 'watched steps', 'hardware')
    return table(head, rows)


def score_table(trainings: Sequence[Training]) -> str:
    """Show all metrics of the last validations."""
    metrics = metrics_of(trainings)
    head, columns = ['last validation'], []
    for t in trainings:
        epoch = max(t.curve, default=0)
        head.append(f'{escape(t.label)}<br>{f"epoch {epoch}" if epoch else "none"}')
        scores = [score(t.curve.get(epoch, {}), metric) for metric in metrics]
        columns.append(['–' if math.isnan(v) else f'{v:.4g}' for v in scores])
    return table(head, list(zip(map(escape, metrics), *columns, strict=True)))


def describe_loss(trainings: Sequence[Training]) -> str:
    """Say what the values of the loss are."""
    of_record = [escape(t.label) for t in trainings if not t.is_logged]
    text = 'As it was logged; MMEngine logs the mean of the last iterations.'
    if len(of_record) == len(trainings):
        text = 'Of single iterations, as VarianceMonitorHook recorded it.'
    elif of_record:
        names = ', '.join(of_record)
        text += f' Without a log, of single iterations, from the record: {names}.'
    return text


def page(trainings: Sequence[Training], title: str) -> str:
    """Return the report.

    Raises:
        ValueError: If a picture is none.
        OSError: If it cannot be read.
    """
    runs = {t.label: t.record for t in trainings if not isinstance(t.record, str)}
    sections = [
        ('Trainings', 'What the work_dirs tell of them.', overview_table(trainings)),
        (
            'Loss',
            describe_loss(trainings),
            draw('loss', history_chart, trainings, 'loss'),
        ),
        (
            'Learning rate',
            'As it was logged.',
            draw('lr', history_chart, trainings, 'lr'),
        ),
        (
            'Validation',
            'A metric, to be chosen from the list, as the paper plots one in Figure 3; '
            'below, all those of the last validation.',
            draw('validation', validation_chart, trainings),
            score_table(trainings) if metrics_of(trainings) else '',
        ),
    ]
    if runs:
        charts = {
            '1a': draw('1a', depth_chart, runs, '1a'),
            '1b': draw('1b', depth_chart, runs, '1b'),
            '2a': draw('2a', course_chart, runs, '2a'),
            '2b': draw('2b', course_chart, runs, '2b'),
            'eq6': draw('eq6', equations_chart, runs),
            'layers': draw('layers', overview_chart, runs),
        }
        sections += [(*FIGURE_TEXTS[name], chart) for name, chart in charts.items()]
    without = [t for t in trainings if t.label not in runs]
    if without:
        reasons = [f'<p>{heading(t)}: {escape(t.record)}</p>' for t in without]
        text = 'These have no figures of the variance.'
        sections.append(('Trainings without a record', text, *reasons))
    for t in trainings:
        if t.pictures:
            name = f'Detections of {escape(t.label)}'
            text = 'As MMDetection drew them, with the ground truth on the left.'
            sections.append((name, text, *map(embed, t.pictures)))
    none = [escape(t.label) for t in trainings if t.lacks_pictures]
    if none:
        text = (
            f'No images of detections were found for {", ".join(none)}. This makes '
            'some, for the next report: <code>python tools/test.py CONFIG CHECKPOINT '
            '--work-dir WORK_DIR --show-dir images</code>'
        )
        sections.append(('Trainings without detections', text))
    body = '\n'.join(
        f'<section><h2>{name}</h2>\n<p>{text}</p>\n{"".join(parts)}</section>'
        for name, text, *parts in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'<script>{get_plotlyjs()}</script></head>\n'
        f'<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='work_dir of a training',
    )
    parser.add_argument(
        '-o', '--out', required=True, type=Path, metavar='FILE', help='file to write'
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help="a label for each WORK_DIR (default: the folder's name)",
    )
    parser.add_argument('--title', default='Trainings', help='(default: Trainings)')
    parser.add_argument(
        '--images',
        type=int,
        default=8,
        metavar='N',
        help='at most so many of each training (default: 8)',
    )
    parser.add_argument(
        '--image-dir',
        action='append',
        type=Path,
        metavar='DIR',
        help='folder of pictures instead of those in the WORK_DIR; once for each',
    )
    args = parser.parse_args()
    folders = args.image_dir or [None] * len(args.work_dirs)
    if len(folders) != len(args.work_dirs):
        parser.error(f'{len(args.work_dirs)} WORK_DIRs but {len(folders)} --image-dir')
    try:
        named = name_runs(args.work_dirs, args.labels)
        trainings = [
            read(label, work_dir, folder, args.images)
            for (label, work_dir), folder in zip(named.items(), folders, strict=True)
        ]
        text = page(trainings, args.title)
        write_whole(args.out, lambda part: part.write_text(text, encoding='utf-8'))
    except (ValueError, OSError) as e:
        parser.error(str(e))
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
