"""Run a computation apart from the global state of torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Give a computation random numbers of its own, and tensors that can be trained.

    Inside, the random numbers of Python, NumPy and torch start from a seed, and no
    gradients are recorded. ``torch.inference_mode`` is off, because tensors that are
    made in it can never be trained. Afterwards the states are those of before.

    Args:
        seed: The seed.
    """
    # Without CUDA in use, do not start it: that takes seconds and memory.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.no_grad():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            # torch.manual_seed would also seed the GPUs that start later.
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
