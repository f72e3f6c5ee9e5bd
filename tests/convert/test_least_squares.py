"""Tests of the fit by least squares."""

import torch
from torch import nn

from pws_mmdet.convert.least_squares import sample_patches


def test_patches_times_filters_are_the_outputs():
    for conv in (
        nn.Conv2d(4, 6, 3, 2, 1, 2, groups=2),
        nn.Conv2d(4, 6, (1, 3), padding='same', padding_mode='circular'),
        nn.Conv2d(4, 6, 1, 2),
    ):
        x = torch.randn(2, 4, 9, 7)
        y = conv(x).movedim(1, -1).flatten(0, 2)
        index = torch.randperm(len(y))[:11]
        patches = sample_patches(conv, x, index)
        w = conv.weight.reshape(conv.groups, 6 // conv.groups, -1)
        made = torch.einsum('pgn,gon->pgo', patches, w).flatten(1) + conv.bias
        torch.testing.assert_close(made, y[index])
