"""Write a report of trainings: one HTML file that needs no network."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from ..utils.files import write_whole
from ..version import __version__
from .charts import (
    course_chart,
    depth_chart,
    draw,
    equations_chart,
    history_chart,
    overview_chart,
    symbol,
)
from .page import Section, details, paragraph, render_page, table
from .results import detections, result
from .selection import name_runs
from .settings import compare_configs, read_config, read_settings
from .training import Training, read_training

# Headings and texts of the figures of the variance, the most telling one first
FIGURE_TEXTS = {
    '1b': (
        'The shift of the average gradient, Figure 1(b) of the paper',
        f'{symbol("shift")} of every layer: how far apart a step moves the means of '
        'its filters. With PWS it is almost zero. The paper shows the beginning of '
        'training.',
    ),
    '1a': (
        'How a step changes the variance of the filters, Figure 1(a)',
        f'{symbol("var_ratio")} of every layer: the mean over its filters, with bars '
        'from the minimum to the maximum.',
    ),
    'eq6': (
        'The variance of the outputs, equations (5) and (6)',
        f'{symbol("var_y")} of every layer: measured, and computed by the equations '
        'from the inputs and the filters.',
    ),
    '2a': (
        'The smallest variance of the filters of a layer, Figure 2(a)',
        f'{symbol("var_w_min")} over the training steps.',
    ),
    '2b': (
        'The largest factor of the filters of a layer, Figure 2(b)',
        f'{symbol("inv_std_max")} over the training steps. In convolutions without γ, '
        'γ is 0.',
    ),
    'layers': (
        'All layers and steps',
        f'{symbol("shift")} above and {symbol("var_y")} below, for every layer (the '
        'first one at the top) at every step. Grey means not finite, 0, or not '
        'watched. The colours end at the percentiles 1 and 99.',
    ),
}
WATCH = '--cfg-options default_hooks.variance.type=VarianceMonitorHook'


def write_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    images: int = 8,
    image_dirs: Sequence[str | Path] | None = None,
) -> None:
    """Write a report of trainings as an HTML file.

    It begins with the result: the last and the best values of the metrics, the
    difference of each training to the first one, the validation curve, and images of
    detections. Loss and learning rate follow. For trainings with VarianceMonitorHook it
    then shows the figures of ``plot_variance``. Of more
    than 100 watched steps it shows 100, with the first and the last one. Settings come
    last.

    Args:
        work_dirs: The work_dirs of the trainings.
        out: The file to write.
        labels: A label for each training. By default it is the folder's name.
        title: The title of the page. By default it names the trainings.
        images: Show at most this number of images with detections for each training,
            those of the last steps.
        image_dirs: For each training, a folder to take the images from. By default
            they come from the work_dir.

    Raises:
        ValueError: If a work_dir holds neither a log nor a variance record, an image
            cannot be decoded, a folder holds none, or the numbers of labels or folders
            are wrong.
        OSError: If a file cannot be read or written.
    """
    folders: Sequence[str | Path | None] = image_dirs or [None] * len(work_dirs)
    if len(folders) != len(work_dirs):
        raise ValueError(f'{len(work_dirs)} WORK_DIRs but {len(folders)} --image-dir')
    named = name_runs([Path(path) for path in work_dirs], labels)
    trainings = [
        read_training(label, work_dir, folder)
        for (label, work_dir), folder in zip(named.items(), folders, strict=True)
    ]
    sections = [
        Section('Result', [*result(trainings), *detections(trainings, images)]),
        Section('Loss and learning rate', _history(trainings)),
        Section('What happened inside', [*_variance(trainings)]),
        Section('Settings', [*_settings(trainings)]),
    ]
    text = render_page(title or _title([*named]), [*named], sections)
    write_whole(out, lambda part: part.write_text(text, encoding='utf-8'))


def _title(labels: Sequence[str]) -> str:
    names = ' and '.join(labels) if len(labels) < 4 else f'{len(labels)} trainings'
    return f'Training report: {names}'


def _history(trainings: Sequence[Training]) -> list[str]:
    loss = draw('loss', history_chart, trainings, 'loss')
    lr = draw('lr', history_chart, trainings, 'lr')
    text = paragraph(_describe_loss(trainings))
    return [
        text,
        f'<div class="pair"><div><h3>Loss</h3>\n{loss}</div>\n'
        f'<div><h3>Learning rate</h3>\n{lr}</div></div>\n',
    ]


def _describe_loss(trainings: Sequence[Training]) -> str:
    """Say whether the losses are means, as MMEngine logs them, or of single steps."""
    of_record = [t.label for t in trainings if not t.is_logged]
    text = 'As they were logged; MMEngine logs the mean of the last iterations.'
    if len(of_record) == len(trainings):
        text = 'Of single iterations, as VarianceMonitorHook recorded it.'
    elif of_record:
        names = ', '.join(of_record)
        text += f' Without a log, of single iterations, from the record: {names}.'
    return text


def _variance(trainings: Sequence[Training]) -> Iterator[str]:
    runs = {t.label: t.record for t in trainings if t.record is not None}
    if runs:
        order = [t.label for t in trainings]
        charts = {
            '1b': draw('1b', depth_chart, runs, '1b', order),
            '1a': draw('1a', depth_chart, runs, '1a', order),
            'eq6': draw('eq6', equations_chart, runs),
            '2a': draw('2a', course_chart, runs, '2a', order),
            '2b': draw('2b', course_chart, runs, '2b', order),
            'layers': draw('layers', overview_chart, runs),
        }
        for name, chart in charts.items():
            heading, text = FIGURE_TEXTS[name]
            yield f'<h3>{heading}</h3>\n<p>{text}</p>\n{chart}'
    without = [t for t in trainings if t.record is None]
    if without:
        names = escape(', '.join(t.label for t in without))
        yield (
            f'<p>The variances of {names} were not recorded. A training records them '
            f'with <code>{WATCH}</code></p>\n'
        )
        yield from (paragraph(t.no_record, 'note') for t in without)


def _settings(trainings: Sequence[Training]) -> Iterator[str]:
    columns = [_settings_of(t) for t in trainings]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [
        [name, *(escape(column.get(name, '–')) for column in columns)] for name in names
    ]
    bold = [
        i
        for i, (name, first, *others) in enumerate(rows)
        if {*others} - {first} and name not in ('work_dir', 'started')
    ]
    several = len(trainings) > 1
    if several:
        yield paragraph('What differs is bold.')
    yield table(
        ['', *(escape(t.label) for t in trainings)] if several else ['', ''],
        rows,
        'settings',
        bold,
    )
    configs = [read_config(t.path) for t in trainings]
    for training, config in zip(trainings[1:], configs[1:], strict=True):
        if config and configs[0] and config != configs[0]:
            heading = f'Config: {training.label} (+) against {trainings[0].label} (−)'
            yield details(heading, compare_configs(configs[0], config))
    for training, config in zip(trainings, configs, strict=True):
        if config:
            yield details(f'Config of {training.label}', config)
    yield f'<footer>Written by pws_mmdet {__version__}.</footer>\n'


def _settings_of(training: Training) -> dict[str, str]:
    found = read_settings(training.path)
    found['last logged step'] = str(training.steps[-1] if training.steps else 0)
    if not math.isnan(training.step_seconds):
        found['time of a step'] = f'{training.step_seconds:.3g} s (median)'
    if training.record is not None:
        found['watched steps'] = str(len(training.record.steps))
    return found
