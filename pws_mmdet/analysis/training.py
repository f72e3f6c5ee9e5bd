"""Read a work_dir: what it tells of a training, for a report."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .scalars import read_scalars, select_metrics
from .settings import TIMESTAMP
from .variance_record import VarianceRecord, read_record

DIVERGED = re.compile(r'Training diverged at iteration (\d+)')
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')


@dataclass(frozen=True)
class Training:
    """What a work_dir tells of a training.

    Args:
        label: Its name in the report.
        path: The work_dir.
        steps: The S training steps that were logged.
        loss: Loss at each step, NaN where it is not finite.
        lr: Learning rate at each step.
        step_seconds: Median time of a step, NaN if it was not logged.
        counts: What the training counts: 'epoch' or 'iteration'.
        validations: Metrics of each validated epoch, or iteration.
        tested: Metrics of the last test that tools/test.py ran in the work_dir.
        record: What VarianceMonitorHook measured; None without a record.
        no_record: The reason why there is no record.
        is_logged: Whether loss and learning rate are from MMEngine's log. If not, they
            are from the variance record.
        images: Images of detections, later steps last.
    """

    label: str
    path: Path
    steps: list[int]
    loss: list[float]
    lr: list[float]
    step_seconds: float
    counts: str
    validations: dict[int, dict[str, float]]
    tested: dict[str, float]
    record: VarianceRecord | None
    no_record: str
    is_logged: bool
    images: list[Path]

    @property
    def divergence(self) -> str | None:
        """How the training diverged; None if it did not."""
        # a console.log is written by the program that trains the rows of a table
        for log in [*self.path.glob('*.log'), *self.path.glob('*/*.log')]:
            text = log.read_text(encoding='utf-8', errors='replace')
            for iteration in DIVERGED.findall(text)[-1:]:
                # A later training in this work_dir may have passed this iteration.
                if not self.steps or int(iteration) >= self.steps[-1]:
                    return f'diverged at iteration {iteration}'
        if self.loss and math.isnan(self.loss[-1]):
            finite = [i for i, loss in enumerate(self.loss) if not math.isnan(loss)]
            first = self.steps[finite[-1] + 1 if finite else 0]
            return f'diverged: loss not finite from step {first}'
        return None


def read_training(
    label: str, work_dir: str | Path, image_dir: str | Path | None = None
) -> Training:
    """Read the work_dir of a training.

    Args:
        label: Name of the training.
        work_dir: The folder.
        image_dir: Take the images of detections from here, not from the work_dir.

    Raises:
        ValueError: If the work_dir holds neither a log nor a variance record, or the
            ``image_dir`` holds no image.
        OSError: If a file cannot be read.
    """
    work_dir = Path(work_dir)
    record, no_record = None, ''
    try:
        record = read_record(work_dir)
    except ValueError as e:
        no_record = str(e)
    try:
        scalars = read_scalars(work_dir)
        entries, validations = scalars.training, scalars.validations
    except ValueError:
        if record is None:
            raise
        entries, validations = {}, {}
    steps = list(entries)
    loss = [_finite(entry.get('loss')) for entry in entries.values()]
    lr = [_finite(entry['lr']) for entry in entries.values()]
    seconds = [_finite(entry.get('time')) for entry in entries.values()]
    seconds = [value for value in seconds if not math.isnan(value)]
    is_epochs = all('epoch' in entry for entry in entries.values())
    is_logged = bool(steps) or record is None
    if record is not None and not is_logged:  # it ended before its first log entry
        steps, loss, lr = (v.tolist() for v in (record.steps, record.loss, record.lr))
    return Training(
        label,
        work_dir,
        steps,
        loss,
        lr,
        median(seconds) if seconds else math.nan,
        'epoch' if is_epochs else 'iteration',
        validations,
        read_test(work_dir),
        record,
        no_record,
        is_logged,
        find_images(work_dir, image_dir),
    )


def read_test(work_dir: Path) -> dict[str, float]:
    """Return the metrics of the last test in a work_dir; empty if there was none.

    MMEngine writes them into the folder of the test, TIME/TIME.json.

    Raises:
        OSError: If a file cannot be read.
    """
    paths = [
        path
        for pattern in ('*/*.json', '*/*/*.json')
        for path in work_dir.glob(pattern)
        if TIMESTAMP.fullmatch(path.stem) and path.stem == path.parent.name
    ]
    for path in sorted(paths, key=lambda path: path.stem, reverse=True):
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except json.JSONDecodeError:  # of a test that was killed
            continue
        if isinstance(content, dict):
            return select_metrics(content)
    return {}


def find_images(work_dir: Path, image_dir: str | Path | None = None) -> list[Path]:
    """Return the images that MMDetection drew, later steps last.

    MMEngine names the folder of a run by its time. The images lie below that folder: in
    vis_data/vis_image, or in the folder of ``--show-dir`` of tools/test.py.

    Args:
        work_dir: The work_dir.
        image_dir: Return all images below this folder instead.

    Raises:
        ValueError: If ``image_dir`` holds no image.
    """
    root = Path(image_dir or work_dir)
    found = [
        path
        for path in root.rglob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES
        and (image_dir or any(map(TIMESTAMP.fullmatch, path.relative_to(root).parts)))
    ]
    if image_dir and not found:
        raise ValueError(f'{image_dir} holds no image (.png, .jpg)')

    def by_numbers(path: Path) -> list[str | int]:  # 90 before 100
        parts = re.split(r'(\d+)', str(path.relative_to(root)))
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(found, key=by_numbers)


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
