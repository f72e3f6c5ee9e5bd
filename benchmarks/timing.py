"""Time the steps of several models in turn, on one device."""

import json
import math
import random
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


class Contender(ABC):
    """A model that is compared with others, and the times of its steps.

    A subclass sets ``model`` and ``device`` before the first step.

    Args:
        name: Its name in tables.
        batch_size: Number of images in a step.
        image_size: Height and width of the images in pixels.
    """

    model: nn.Module | None
    device: torch.device
    optimizer: Optimizer | None = None

    def __init__(self, name: str, batch_size: int, image_size: Sequence[int]) -> None:
        self.name = name
        self.batch_size = batch_size
        self.image_size = image_size
        self.seconds: list[float] = []  # of each measured step
        self.peak_memory: int | None = None  # bytes
        self.error: str | None = None

    def attempt(self, method: Callable, *args) -> Any:
        """Call a method of this object, unless one failed before.

        An error is kept as ``error``, and the model is released.

        Returns:
            What the method returns; None after an error.
        """
        if self.error is not None:
            return None
        try:
            return method(*args)
        except Exception as e:  # the other contenders continue
            self.error = shorten(f'{type(e).__name__}: {e}', 400)
        self.model = self.optimizer = None
        torch.cuda.empty_cache()
        return None

    def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Prepare a step. This is not timed."""

    @abstractmethod
    def run(self) -> Tensor | float:
        """Take a step and return the loss."""

    def step(self) -> float:
        """Take a step and return its seconds.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        self.prepare()
        self._synchronize()
        start = perf_counter()
        loss = self.run()
        self._synchronize()
        seconds = perf_counter() - start
        loss = float(loss)
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss is {loss}')
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def measure_memory(self) -> int:
        """Take a step and return the peak of the memory in bytes.

        The peak is the memory of this model and its optimizer before the step, plus
        what the step adds. The memory of other contenders does not count.
        """
        parameters = list(self.model.parameters())
        states = [] if self.optimizer is None else self.optimizer.state.values()
        held = [
            *parameters,
            *self.model.buffers(),
            *(p.grad for p in parameters),
            *(value for state in states for value in state.values()),
        ]
        added = step_memory(self.step, self.device)
        return added + sum(t.nbytes for t in held if isinstance(t, Tensor))

    def ratio(self, first: 'Contender') -> float:
        """Return how many times as fast as another contender this one is.

        It is the median over the rounds of the ratio of images per second. NaN if one
        of them failed.
        """
        if self.error is not None or first.error is not None:
            return math.nan
        rounds = zip(first.seconds, self.seconds, strict=True)
        ratio = statistics.median(theirs / own for theirs, own in rounds)
        return ratio * self.batch_size / first.batch_size

    def images_per_second(self) -> float:
        """Return the images per second of the median step; NaN after an error."""
        if self.error is not None:
            return math.nan
        return self.batch_size / statistics.median(self.seconds)


def take_turns(
    contenders: Sequence[Contender], rounds: Iterable[int], warmup: int
) -> Iterator[int]:
    """Let every contender take a step in each round, in a random order.

    Other work on the machine then affects all contenders alike. The random order
    prevents that one contender always finds the caches of the same other one. If a
    contender fails, the others continue.

    Args:
        contenders: Contenders that are built.
        rounds: The numbers of the rounds, from 0.
        warmup: The number of rounds that are not timed.

    Yields:
        The number of each finished round.
    """
    for i in rounds:
        for contender in random.Random(i).sample(contenders, len(contenders)):
            seconds = contender.attempt(contender.step)
            if i >= warmup and seconds is not None:
                contender.seconds.append(seconds)
        yield i


def step_memory(step: Callable, device: torch.device) -> int:
    """Return the peak of the memory that a function adds, in bytes of tensors."""
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding='utf-8'))['traceEvents']
    changes = sorted(
        (event['ts'], event['args']['Bytes'])
        for event in events
        if event.get('name') == '[memory]'
    )
    return max(accumulate((size for _, size in changes), initial=0))
