"""Choose the patches that a layer is fitted to."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import unravel_index
from .forward import images_in
from .layer import Filters
from .least_squares import Moments
from .observe import Call


def sample_patches(conv: nn.Conv2d, x: Tensor, index: Tensor) -> Tensor:
    """Return the input patches that a convolution multiplies with its filters.

    Args:
        conv: The convolution.
        x: Its input, (N, c_in, H, W).
        index: Output positions, (P,), as indices into the flattened (N, H', W').

    Returns:
        The patches at these positions, (P, groups, c_in / groups * k * k), in fp32,
        or in fp64 if the input is in fp64.
    """
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    out = [
        (x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    s = x.stride()
    patches = x.as_strided(
        (len(x), *out, x.shape[1], *kernel),
        (s[0], s[2] * stride[0], s[3] * stride[1], s[1])
        + (s[2] * dilation[0], s[3] * dilation[1]),
    )
    rows = patches[unravel_index(index, (len(x), *out))]
    rows = rows.reshape(len(index), conv.groups, -1)
    return rows if rows.dtype == torch.float64 else rows.float()


class Sample(NamedTuple):
    """Output positions of a call.

    Attributes:
        patches: The input patches, (P, groups, n).
        y: The wanted outputs, (P, groups, O / groups).
        carried: What the network goes on with, (P, O): the outputs, or the sum to which
            it adds them directly.
        row: Rows of the batch, (P,).
    """

    patches: Tensor
    y: Tensor
    carried: Tensor
    row: Tensor

    def empty_moments(self) -> Moments:
        """Return moments to which the patches and the wanted outputs can be added."""
        groups, n = self.patches.shape[1:]
        return Moments(groups, n, self.y.shape[2], self.y.device)


class Sampler:
    """Chooses output positions of calls at random, and tells the halves of the images.

    Args:
        batches: The calibration batches.
        seed: Seed of the choice.
    """

    def __init__(self, batches: Sequence[Any], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.images = [images_in(batch) for batch in batches]
        self.offsets = [0, *accumulate(n or 0 for n in self.images)]

    def sample(
        self,
        conv: nn.Conv2d,
        call: Call,
        aim: Call,
        keep: float,
        original: Filters | None = None,
    ) -> Sample | None:
        """Choose output positions of a call.

        Args:
            conv: The convolution.
            call: The call whose input has the patches.
            aim: The call with the wanted outputs.
            keep: The share of the positions to choose.
            original: Filters that compute the wanted outputs from the patches instead.

        Returns:
            None if the output is empty.
        """
        x, y = call.x, aim.y
        positions = y[:, 0].numel()
        if not positions:
            return None
        index = torch.randperm(positions, generator=self.generator)
        index = index[: max(1, round(keep * positions))].to(x.device)
        patches = sample_patches(conv, x, index)
        if original is None:
            y = carried = _at(y, index, patches)
            if call.added is not None and aim.added is not None:
                # Aim at the original sum: the layer makes up for the other summand's
                # error.
                carried = y + _at(aim.added, index, y)
                y = carried - _at(call.added, index, y)
            y = y.unflatten(1, (conv.groups, -1))
        else:
            w, b = (t.to(patches) for t in original)
            y = torch.einsum('pgn,gno->pgo', patches, w) + b
            carried = y.flatten(1)
        return Sample(patches, y, carried, index // (positions // len(x)))

    def in_second(
        self, batch: int, row: Tensor, rows: int, turn: int, turns: int
    ) -> Tensor:
        """Tell which rows of a layer's input belong to the second half of the images.

        No image is in both halves. If the rows are not the images of the batch, as
        behind proposals, whole batches alternate between the halves. If only one batch
        reaches the layer, its rows are cut in the middle; then at most one image is in
        both halves.

        Args:
            batch: Number of the batch.
            row: The rows.
            rows: How many rows the input has.
            turn: Number of the batch among those that reach the layer.
            turns: The number of batches that reach the layer.
        """
        if rows == self.images[batch]:
            return (row + self.offsets[batch]) % 2 == 1
        if turns == 1:
            return row >= rows // 2
        return torch.full_like(row, turn % 2 == 1, dtype=torch.bool)


def _at(x: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return values (P, C) of a feature map at some positions."""
    x = x.flatten(2)
    size = x.shape[2]
    return x[index // size, :, index % size].to(like)
