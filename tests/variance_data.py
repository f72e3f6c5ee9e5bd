"""Variance records for tests, as VarianceMonitorHook writes them."""

import numpy as np

from pws_mmdet.analysis import STATISTICS
from pws_mmdet.analysis.variance_record import Layer, write_header, write_step

NAMES = ('backbone.a', 'backbone.b', 'backbone.c', 'head.d')


def write_record(work_dir, steps, names=NAMES, gamma=0.0, filters=4, n=9, **statistics):
    """Write the record of a training into its work_dir.

    Statistics are arrays (S, L), or what broadcasts to it. The other ones are all 1.
    """
    shape = len(steps), len(names)
    values = {name: np.ones(shape) for name in STATISTICS}
    for name, value in statistics.items():
        values[name] = np.broadcast_to(value, shape)
    path = work_dir / '20260101_000000' / 'variance.jsonl'
    layer = dict(type='Conv2d', n=n, filters=filters, gamma=gamma, frozen=False)
    write_header(path, [Layer(name=name, **layer) for name in names])
    for i, step in enumerate(steps):
        write_step(path, step, 0.1, 1.0, {k: v[i] for k, v in values.items()})
    return work_dir


def ratios(mean):
    """Return var_ratio (S, L) and its band: 0.1 below the mean to 0.2 above it."""
    mean = np.array(mean)
    return dict(var_ratio=mean, var_ratio_min=mean - 0.1, var_ratio_max=mean + 0.2)
