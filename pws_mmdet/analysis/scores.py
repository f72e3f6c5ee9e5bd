"""The results of trainings: metrics with short names, in the order of importance."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .training import Training

# Patterns of metrics, what people call them, and the factor that makes them percent.
# The first match counts.
KNOWN = (
    (r'(?:.*/)?bbox_m?AP_?(\w*)', 'box AP{}', 100),
    (r'(?:.*/)?segm_m?AP_?(\w*)', 'mask AP{}', 100),
    (r'(?:.*/)?mAP()', 'mAP{}', 100),
    (r'(?:.*/)?accuracy/top1()', 'top-1 accuracy{}', 1),
    (r'(?:.*/)?accuracy/top(\d+)', 'top-{} accuracy', 1),
    (r'pascal_voc/AP(\d+)', 'AP{}', 100),
    (r'box/f_measure()', 'box F-measure{}', 100),
    (r'box/(precision|recall)', 'box {}', 100),
)
SIZES = {'s': ', small', 'm': ', medium', 'l': ', large'}
MAIN = ('box AP', 'mask AP', 'mAP', 'top-1 accuracy')


@dataclass(frozen=True)
class Metric:
    """A metric of validations.

    Args:
        key: Its name in the log.
        name: Its name in a report.
        factor: What its values are multiplied by in a report.
        is_known: Whether larger values are certainly better, in percent.
    """

    key: str
    name: str
    factor: float
    is_known: bool

    def value(self, metrics: dict[str, float]) -> float:
        """Return its value in a report, or NaN if it is missing.

        COCO reports -1 where there was no object. This is NaN, too.
        """
        value = metrics.get(self.key, -1)
        return math.nan if value == -1 else value * self.factor

    def text(self, value: float, sign: str = '') -> str:
        """Return a value as text, '–' for NaN. With the sign '+' all have a sign."""
        if math.isnan(value):
            return '–'
        text = format(value, f'{sign}{".1f" if self.is_known else ".4g"}')
        return text.replace('-', '−')


@dataclass(frozen=True)
class Score:
    """The last and the best value of a metric in a training.

    Args:
        last: The value of the last validation, or of a test if there was no validation.
        best: The best value, NaN if nobody knows whether larger is better.
        epoch: The epoch of the best value; 0 without a validation.
    """

    last: float
    best: float
    epoch: int


def find_metrics(trainings: Sequence[Training]) -> list[Metric]:
    """Return all metrics of some trainings: the main ones, then in the log's order."""
    results = [found for t in trainings for found in results_of(t).values()]
    keys = dict.fromkeys(key for found in results for key in found)
    metrics = [_describe(key) for key in keys]
    if len({metric.name for metric in metrics}) < len(metrics):  # of several data sets
        metrics = [Metric(m.key, m.key, m.factor, m.is_known) for m in metrics]

    def rank(metric: Metric) -> int:
        name = _describe(metric.key).name
        return MAIN.index(name) if name in MAIN else len(MAIN)

    return sorted(metrics, key=rank)


def main_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics that sum up a result: box and mask AP, or the first metric."""
    main = [m for m in metrics if _describe(m.key).name in MAIN]
    return main or list(metrics[:1])


def results_of(training: Training) -> dict[int, dict[str, float]]:
    """Return the metrics of each validation; without any, those of a test, as 0."""
    if training.validations or not training.tested:
        return training.validations
    return {0: training.tested}


def score_of(training: Training, metric: Metric) -> Score:
    """Return the last and the best value of a metric in a training."""
    results = results_of(training)
    values = {epoch: metric.value(found) for epoch, found in sorted(results.items())}
    finite = {e: v for e, v in values.items() if not math.isnan(v)}
    last = values[max(values)] if values else math.nan
    if not finite or not metric.is_known:
        return Score(last, math.nan, 0)
    epoch = max(finite, key=lambda epoch: (finite[epoch], epoch))
    return Score(last, finite[epoch], epoch)


def _describe(key: str) -> Metric:
    for pattern, name, factor in KNOWN:
        if found := re.fullmatch(pattern, key):
            part = SIZES.get(found[1], found[1])
            return Metric(key, name.format(part), factor, True)
    return Metric(key, key, 1, False)
