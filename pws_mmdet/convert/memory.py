"""The memory that a conversion may take."""

import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..compat import tree_leaves

GIB = 2**30


def default_limit(device: torch.device) -> float:
    """Return a quarter of the memory of a device, in GiB."""
    if device.type == 'cuda':
        total = torch.cuda.mem_get_info(device)[1]
    elif hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:
        total = 16 * GIB
    return total / 4 / GIB


class LivingTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that operators return and that still exist.

    Attributes:
        bytes: Of the tensors that exist now.
        peak: The most that there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._storages: dict[int, list[int]] = {}  # bytes and number of tensors

    def _forget(self, key: int) -> None:
        storage = self._storages[key]
        storage[1] -= 1
        if not storage[1]:
            self.bytes -= self._storages.pop(key)[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, Tensor) or x.layout is not torch.strided:
                continue
            key, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
            if not key:
                continue
            if key not in self._storages:
                self._storages[key] = [size, 0]
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
            self._storages[key][1] += 1
            # A tensor and not its storage: torch 2.1 makes a new object for a storage
            # each time.
            weakref.finalize(x, self._forget, key)
        return out
