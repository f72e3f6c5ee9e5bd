"""Reduce the values of a figure, and say in words what they are."""

import warnings
from collections.abc import Sequence

import numpy as np

from .variance_record import VarianceRecord

ALWAYS_LOG = ('1b', 'eq6', 'layers')


def mean_over_steps(record: VarianceRecord, statistic: str) -> np.ndarray:
    """Return the mean of the finite values of a statistic for each layer, (L,).

    For a minimum over the filters it is the minimum, for a maximum the maximum.
    """
    values = record.values[statistic]
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():  # numpy warns of layers without a finite value
        warnings.simplefilter('ignore', RuntimeWarning)
        if statistic.endswith('_min'):
            return np.nanmin(values, 0)
        if statistic.endswith('_max'):
            return np.nanmax(values, 0)
        return np.nanmean(values, 0)


def at_step(record: VarianceRecord, statistic: str, step: int) -> np.ndarray:
    """Return a statistic for each layer, (L,), at the watched step nearest to a step.

    After the last watched step of a training, all values are NaN.
    """
    row = record.values[statistic][np.abs(record.steps - step).argmin()]
    return row if step <= record.steps[-1] else np.full_like(row, np.nan)


def is_log(name: str, values: Sequence[np.ndarray]) -> bool:
    """Whether the axis of a figure is logarithmic for these values.

    It always is for the figures 1b, eq6 and layers. For the others it is if the largest
    positive value is more than 100 times the smallest one.

    Raises:
        ValueError: If no value is finite and above 0.
    """
    flat = np.concatenate([v.ravel() for v in values])
    positive = flat[np.isfinite(flat) & (flat > 0)]
    if not len(positive):
        raise ValueError(f'figure {name} has no value that is finite and above 0')
    return name in ALWAYS_LOG or positive.max() > 100 * positive.min()


def drawable(values: np.ndarray, log: bool) -> np.ndarray:
    """Replace values that cannot be drawn by NaN."""
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def color_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the percentiles 1 and 99 of the values that can be drawn.

    The values of the last steps before a divergence are so large that the whole range
    would leave one colour to all other values.
    """
    flat = np.concatenate([drawable(v, log=True).ravel() for v in values])
    low, high = np.exp(np.nanpercentile(np.log(flat), [1, 99]))
    return low, high


def gaps(values: Sequence[np.ndarray], log: bool) -> list[str]:
    """Say how many values cannot be drawn; an empty list if all can."""
    flat = np.concatenate([v.ravel() for v in values])
    missing = np.count_nonzero(~np.isfinite(flat))
    zeros = np.count_nonzero(flat == 0) if log else 0
    remarks = []
    if missing:
        remarks.append(f'{missing} {"value" if missing == 1 else "values"} not finite')
    if zeros:
        remarks.append(f'{zeros} {"is" if zeros == 1 else "are"} 0')
    return remarks


def legend_entry(label: str, remarks: Sequence[str]) -> str:
    """Return a label with the remarks in brackets."""
    return f'{label} ({", ".join(remarks)})' if remarks else label


def steps_text(record: VarianceRecord) -> str:
    """Return 'step 50', or 'mean of steps 1 to 60' if there are several."""
    first, last = record.steps[0], record.steps[-1]
    return f'step {first}' if first == last else f'mean of steps {first} to {last}'


def gamma_text(record: VarianceRecord) -> str:
    """Return 'γ = 0.001', with every gamma of the layers."""
    gammas = sorted({layer.gamma for layer in record.layers})
    return 'γ = ' + ', '.join(f'{gamma:.3g}' for gamma in gammas)
