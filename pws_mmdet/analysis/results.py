"""The result in a report: scores in large type, a table, a curve, detections."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from ..utils.repository import shown_path
from .charts import draw, validation_chart
from .page import image, paragraph, swatch, table
from .scores import Metric, Score, find_metrics, main_metrics, results_of, score_of
from .training import Training

DRAW = 'python {test} CONFIG CHECKPOINT --work-dir WORK_DIR/test --show-dir images'


def result(trainings: Sequence[Training]) -> Iterator[str]:
    """Return the result in large type, the table of all metrics, and the curve."""
    metrics = find_metrics(trainings)
    main = main_metrics(metrics)
    cards = [_card(i, t, trainings, main) for i, t in enumerate(trainings)]
    yield f'<div class="cards">{"".join(cards)}</div>\n'
    if not metrics:
        return
    numbers = _score_table(trainings, metrics, main)
    if len(trainings) > 1:
        numbers += paragraph(
            f'Small: the difference to {trainings[0].label}. This is one training '
            'each. Repeat them with other seeds before you rely on a small difference.',
            'note',
        )
    curve = draw('validation', validation_chart, trainings)
    columns = ' class="pair"' if len(trainings) < 4 else ''
    yield f'<div{columns}><div>{numbers}</div>\n<div>{curve}</div></div>\n'


def _card(
    index: int,
    training: Training,
    trainings: Sequence[Training],
    main: Sequence[Metric],
) -> str:
    """Return the result of a training in large type."""
    name = f'<h3>{swatch(index)}{escape(training.label)}</h3>'
    scores = [(m, score_of(training, m)) for m in main]
    values = [
        f'<div><dt>{escape(m.name)}</dt><dd>{m.text(s.last)}</dd></div>'
        for m, s in scores
        if not math.isnan(s.last)
    ]
    lines = []
    if divergence := training.divergence:
        lines.append(paragraph(divergence, 'bad'))
    if values:
        lines.append(paragraph(_when(training, scores)))
    else:
        lines.append(paragraph('not validated'))
        finite = [loss for loss in training.loss if not math.isnan(loss)]
        values = [f'<div><dt>loss</dt><dd>{v:#.3g}</dd></div>' for v in finite[-1:]]
    return (
        f'<article class="card">{name if len(trainings) > 1 else ""}'
        f'<dl>{"".join(values)}</dl>{"".join(lines)}</article>'
    )


def _when(training: Training, scores: Sequence[tuple[Metric, Score]]) -> str:
    """Say of which validation a result is, and which one was better."""
    if not training.validations:
        return 'tested'
    last = max(training.validations)
    text = f'after {training.counts} {last}'
    better = [
        f'{metric.name} {metric.text(score.best)} after {training.counts} {score.epoch}'
        for metric, score in scores
        if score.epoch not in (0, last) and score.best > score.last
    ]
    return f'{text}; best {", ".join(better)}' if better else text


def _score_table(
    trainings: Sequence[Training], metrics: Sequence[Metric], main: Sequence[Metric]
) -> str:
    """Show the metrics: of one training the last and the best, of several the last."""
    rows = []
    for metric in metrics:
        scores = [score_of(t, metric) for t in trainings]
        values = [score.last for score in scores]
        if all(map(math.isnan, values)):  # as AP of large objects, without any
            continue
        cells = [metric.text(value) for value in values]
        for i, value in enumerate(values[1:], 1):
            if not math.isnan(value - values[0]):
                gain = metric.text(value - values[0], '+')
                cells[i] += f' <small>{gain}</small>'
        if len(trainings) == 1:
            cells += _best(trainings[0], metric, scores[0])
        rows.append([escape(metric.name), *cells])
    heads = [_last_heading(t) for t in trainings]
    if len(trainings) == 1:
        heads += ['best'] * (len(trainings[0].validations) > 1)
    else:
        heads = [
            f'{escape(t.label)}<br><small>{head}</small>'
            for t, head in zip(trainings, heads, strict=True)
        ]
    names = {escape(metric.name) for metric in main}
    bold = [i for i, row in enumerate(rows) if row[0] in names]
    return table(['', *heads], rows, bold=bold)


def _best(training: Training, metric: Metric, score: Score) -> list[str]:
    """Return the cell of the best validation, if there were several."""
    if len(training.validations) < 2:
        return []
    if not score.epoch or score.epoch == max(training.validations):
        return [metric.text(score.best)]
    return [f'{metric.text(score.best)} <small>{training.counts} {score.epoch}</small>']


def _last_heading(training: Training) -> str:
    last = max(results_of(training), default=None)
    if last is None:
        return 'not validated'
    return f'{training.counts} {last}' if training.validations else 'test'


def detections(trainings: Sequence[Training], count: int) -> Iterator[str]:
    """Return the last ``count`` images of detections of each training.

    Raises:
        ValueError: If a file is no image.
    """
    rows = _choose_images(trainings, count)
    if rows:
        yield '<h3>Detections</h3>\n'
        yield paragraph(
            'As MMDetection drew them: the ground truth on the left, the detections on '
            'the right.'
        )
        names = [
            f'{swatch(i)}{escape(t.label)}: ' if len(trainings) > 1 else ''
            for i, t in enumerate(trainings)
        ]
        figures = [
            image(path, names[i] + escape(path.name)) for row in rows for i, path in row
        ]
        columns = f' of-{len(rows[0])}' if len(rows[0]) > 1 else ''
        yield f'<div class="images{columns}">{"".join(figures)}</div>\n'
    without = [t.label for t in trainings if not t.images]
    if without:
        yield (
            f'<p class="note">There are no images of detections of '
            f'{escape(", ".join(without))}. This makes some for the next report: '
            f'<code>{escape(DRAW.format(test=shown_path("tools/test.py")))}</code></p>\n'
        )


def _choose_images(
    trainings: Sequence[Training], count: int
) -> list[list[tuple[int, Path]]]:
    """Return the last images, in rows of (training, image).

    If several trainings drew the same images, a row has an image of each training.
    """
    drawn = [(i, t.images) for i, t in enumerate(trainings) if t.images]
    by_name = [{path.name: path for path in images} for _, images in drawn]
    names = [
        name for name in (by_name or [{}])[0] if all(name in named for named in by_name)
    ]
    if len(drawn) > 1 and names:
        return [
            [(i, named[name]) for (i, _), named in zip(drawn, by_name, strict=True)]
            for name in names[max(0, len(names) - count) :]
        ]
    return [
        [(i, path)]
        for i, images in drawn
        for path in images[max(0, len(images) - count) :]
    ]
