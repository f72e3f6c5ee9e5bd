"""The options of a conversion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .forward import Forward, run_model

MAX_SCALE = 3.0
MAX_LOSS = 0.05
# Heads behind proposals: the converted network has other proposals.
UNALIGNED = (r'(^|\.)roi_head\.',)


@dataclass(frozen=True)
class ConversionOptions:
    """How the zero-mean filters of a converted network are found.

    Attributes:
        forward: Calls a network with a batch. The default is :func:`run_model`:
            ``test_step`` for MMEngine models, ``model(batch)`` for others.
        max_scale: Bound of the factors by which channels are scaled before the fit,
            and of the inverse factors. A larger bound, such as 10, loses less if the
            network is not trained afterwards. If it is trained, a larger bound needs
            a smaller learning rate. 1 scales nothing.
        max_positions: The number of output positions that a layer is fitted to, at
            most.
        unaligned: Regular expressions for the names of layers whose inputs in the
            original and in the converted network do not correspond, as in heads
            behind proposals. These layers are fitted to the outputs of their own
            original filters.
        max_loss: With ``exclude='auto'``, a layer stays plain if zero-mean filters
            lose more of its outputs: the root of the additional mean squared error on
            images they were not fitted to, over the standard deviation of the outputs,
            or of the sum to which the network adds them directly. Without images it is
            the root of the share of a filter's squares that subtracting its mean takes
            away.
        sweeps: How often all layers are fitted. Where several layers add to a sum,
            the second sweep divides among them the error that the first one left.
        max_memory: Memory in GiB that the calibration images may take while the
            networks run on them. Of more images, only the first ones are used, with a
            warning. The default is a quarter of the memory of the device.
        seed: Seed of the choice of output positions, and of the weights that filters
            of zeros get, which have no effect until they are trained.
        progress: Show progress bars.

    Raises:
        ValueError: If ``max_scale`` or ``sweeps`` is below 1, ``max_memory`` is not
            above 0, or ``unaligned`` holds
            something else than regular expressions.
    """

    forward: Forward = run_model
    max_scale: float = MAX_SCALE
    max_positions: int = 2**15
    unaligned: Sequence[str] = UNALIGNED
    max_loss: float = MAX_LOSS
    sweeps: int = 1
    max_memory: float | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.max_scale >= 1:
            raise ValueError(f'max_scale must be 1 or more, got {self.max_scale}')
        if self.sweeps < 1:
            raise ValueError(f'sweeps must be 1 or more, got {self.sweeps}')
        if self.max_memory is not None and not self.max_memory > 0:
            raise ValueError(f'max_memory must be above 0, got {self.max_memory}')
        for pattern in self.unaligned:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(
                    f'unaligned: {pattern!r} is no regular expression: {e}'
                ) from e
