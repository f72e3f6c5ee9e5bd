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
        self._storages: dict[int, int] = {}

    def _forget(self, key: int) -> None:
        self.bytes -= self._storages.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, Tensor) or x.layout is not torch.strided:
                continue
            storage = x.untyped_storage()
            key = storage.data_ptr()
            if key and key not in self._storages:
                self._storages[key] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._forget, key)
        return out
