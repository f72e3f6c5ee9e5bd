"""Write a report of trainings: one HTML file that needs no network."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2

from ..utils.files import write_whole
from .charts import (
    course_chart,
    depth_chart,
    draw,
    equations_chart,
    history_chart,
    overview_chart,
    plotly_script,
    symbol,
    validation_chart,
)
from .figures import metrics_of, score
from .selection import name_runs
from .training import Training, read_training

IMAGE_SIDE = 640  # pixels
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
FIGURE_TEXTS = {
    '1a': (
        'Figure 1(a): how a step changes the variance of the filters',
        f'{symbol("var_ratio")} of every layer: the mean over its filters, with bars '
        'from the minimum to the maximum. The paper shows the beginning of training.',
    ),
    '1b': (
        'Figure 1(b): the shift of the average gradient',
        f'{symbol("shift")} of every layer: how far apart a step moves the means of '
        'its filters. The paper shows the beginning of training.',
    ),
    '2a': (
        'Figure 2(a): the smallest variance of the filters of a layer',
        f'{symbol("var_w_min")} over the training steps. The paper shows the third '
        'convolution.',
    ),
    '2b': (
        'Figure 2(b): the largest factor of the filters of a layer',
        f'{symbol("inv_std_max")} over the training steps. In convolutions without γ, '
        'γ is 0. The paper shows the third convolution.',
    ),
    'eq6': (
        'Equations (5) and (6): the variance of the outputs',
        f'{symbol("var_y")} of every layer: measured, and computed by the equations '
        'from the inputs and the filters.',
    ),
    'layers': (
        'Overview of layers and steps',
        f'{symbol("shift")} above and {symbol("var_y")} below, for every layer (the '
        'first one at the top) at every step. Grey means not finite, 0, or not '
        'watched. The colours end at the percentiles 1 and 99.',
    ),
}


class Section(NamedTuple):
    """A section of the page: HTML under a heading, which is HTML, too."""

    heading: str
    text: str
    parts: Sequence[str] = ()


def write_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    labels: Sequence[str] | None = None,
    title: str = 'Trainings',
    images: int = 8,
    image_dirs: Sequence[str | Path] | None = None,
) -> None:
    """Write a report of trainings as an HTML file.

    It shows the loss, the learning rate and the validations. For trainings with
    VarianceMonitorHook it shows the figures of
    ``plot_variance``, too. Of more than 100 watched steps
    it shows 100, with the first and the last one.

    Args:
        work_dirs: The work_dirs of the trainings.
        out: The file to write.
        labels: A label for each training. By default it is the folder's name.
        title: The title of the page.
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
    text = _page(trainings, title, images)
    write_whole(out, lambda part: part.write_text(text, encoding='utf-8'))


def _page(trainings: Sequence[Training], title: str, images: int) -> str:
    sections = [
        *_log_sections(trainings),
        *_variance_sections(trainings),
        *_image_sections(trainings, images),
    ]
    body = '\n'.join(
        f'<section><h2>{heading}</h2>\n<p>{text}</p>\n{"".join(parts)}</section>'
        for heading, text, parts in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'<script>{plotly_script()}</script></head>\n'
        f'<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'
    )


def _log_sections(trainings: Sequence[Training]) -> Iterable[Section]:
    text = 'What the work_dirs say about them.'
    yield Section('Trainings', text, [_overview_table(trainings)])
    chart = draw('loss', history_chart, trainings, 'loss')
    yield Section('Loss', _describe_loss(trainings), [chart])
    chart = draw('lr', history_chart, trainings, 'lr')
    yield Section('Learning rate', 'As it was logged.', [chart])
    text = (
        'Choose a metric from the list; the paper plots one in Figure 3. The table '
        'shows all metrics of the last validation.'
    )
    parts = [draw('validation', validation_chart, trainings)]
    if metrics_of(trainings):
        parts.append(_score_table(trainings))
    yield Section('Validation', text, parts)


def _variance_sections(trainings: Sequence[Training]) -> Iterable[Section]:
    runs = {t.label: t.record for t in trainings if t.record is not None}
    if runs:
        charts = {
            '1a': draw('1a', depth_chart, runs, '1a'),
            '1b': draw('1b', depth_chart, runs, '1b'),
            '2a': draw('2a', course_chart, runs, '2a'),
            '2b': draw('2b', course_chart, runs, '2b'),
            'eq6': draw('eq6', equations_chart, runs),
            'layers': draw('layers', overview_chart, runs),
        }
        for name, chart in charts.items():
            yield Section(*FIGURE_TEXTS[name], [chart])
    without = [t for t in trainings if t.label not in runs]
    if without:
        reasons = [f'<p>{_heading(t)}: {escape(t.no_record)}</p>' for t in without]
        text = 'There are no figures of the variance for these trainings.'
        yield Section('Trainings without a record', text, reasons)


def _image_sections(trainings: Sequence[Training], count: int) -> Iterable[Section]:
    for t in trainings:
        shown = t.images[max(0, len(t.images) - count) :]
        if shown:
            heading = f'Detections of {escape(t.label)}'
            text = 'As MMDetection drew them, with the ground truth on the left.'
            yield Section(heading, text, list(map(_embed, shown)))
    without = [escape(t.label) for t in trainings if not t.images]
    if without:
        text = (
            f'No images of detections were found for {", ".join(without)}. This '
            'command makes some for the next report: <code>python tools/test.py CONFIG '
            'CHECKPOINT --work-dir WORK_DIR --show-dir images</code>'
        )
        yield Section('Trainings without detections', text)


def _embed(path: Path) -> str:
    """Return an image as HTML, with its longer side at most IMAGE_SIDE pixels.

    Raises:
        ValueError: If the file is no image.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f'{path} is no image')
    scale = IMAGE_SIDE / max(image.shape[:2])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    data = base64.b64encode(jpeg.tobytes()).decode()
    name = escape(path.name)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
        f'<figcaption>{name}</figcaption></figure>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML. The cells are HTML."""
    top = ''.join(f'<th>{cell}</th>' for cell in head)
    body = '\n'.join(
        f'<tr><th>{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>'


def _heading(training: Training) -> str:
    """Return the name of a training and, if it diverged, how."""
    name, divergence = escape(training.label), training.divergence
    return f'{name}<br><strong>{divergence}</strong>' if divergence else name


def _overview_table(trainings: Sequence[Training]) -> str:
    rows = []
    for t in trainings:
        watched = '–' if t.record is None else len(t.record.steps)
        cells = (t.config, t.steps[-1] if t.steps else 0, watched, t.hardware)
        rows.append([_heading(t), *(escape(str(cell)) for cell in cells)])
    head = ('training', 'config', 'last logged step', 'watched steps', 'hardware')
    return _table(head, rows)


def _score_table(trainings: Sequence[Training]) -> str:
    """Show all metrics of the last validation of each training."""
    metrics = metrics_of(trainings)
    head, columns = ['last validation'], []
    for t in trainings:
        epoch = max(t.validations, default=0)
        head.append(f'{escape(t.label)}<br>{f"epoch {epoch}" if epoch else "none"}')
        scores = [score(t.validations.get(epoch, {}), metric) for metric in metrics]
        columns.append(['–' if math.isnan(v) else f'{v:.4g}' for v in scores])
    return _table(head, list(zip(map(escape, metrics), *columns, strict=True)))


def _describe_loss(trainings: Sequence[Training]) -> str:
    """Say whether the losses are means, as MMEngine logs them, or of single steps."""
    of_record = [escape(t.label) for t in trainings if not t.is_logged]
    text = 'As it was logged; MMEngine logs the mean of the last iterations.'
    if len(of_record) == len(trainings):
        text = 'Of single iterations, as VarianceMonitorHook recorded it.'
    elif of_record:
        names = ', '.join(of_record)
        text += f' Without a log, of single iterations, from the record: {names}.'
    return text
