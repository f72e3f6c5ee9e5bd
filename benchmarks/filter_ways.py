"""Ways to compute the filters of a ResNet-50 and their gradients."""

import math
from collections.abc import Callable
from itertools import groupby
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from pws_mmdet.layers import PWSConv2d
from pws_mmdet.models import PWSResNet

DEPTH = 50  # of the ResNet


def standardize(weight: Tensor, alpha: Tensor) -> Tensor:
    """Standardize filters of shape (O, n), as PWSConv2d does."""
    gain = alpha * math.sqrt(2 / weight.shape[1])
    return F.group_norm(weight[None], len(weight), gain, eps=1e-4)[0]


def length(conv: PWSConv2d) -> int:
    return conv.weight[0].numel()


def joined(convs: list[PWSConv2d]) -> list[Tensor]:
    """Make one call for all layers whose filters have the same length."""
    made = []
    for _, group in groupby(sorted(convs, key=length), key=length):
        same = list(group)
        weight = torch.cat([conv.weight.flatten(1) for conv in same])
        filters = standardize(weight, torch.cat([conv.alpha for conv in same]))
        made += filters.split([len(conv.weight) for conv in same])
    return made


# Name, the stages to freeze, and the function that computes the filters
WAYS: list[tuple[str, int, Callable[[list[PWSConv2d]], list[Tensor]]]] = [
    ('copies of the weights', -1, lambda convs: [c.weight.clone() for c in convs]),
    ('one call a layer', -1, lambda convs: [c.effective_weight() for c in convs]),
    ('one call for all layers with filters of the same length', -1, joined),
    (
        'one call a layer, then to bfloat16, as autocast does',
        -1,
        lambda convs: [c.effective_weight().bfloat16() for c in convs],
    ),
    (
        'weights to bfloat16, then one call a layer',
        -1,
        lambda convs: [
            standardize(c.weight.bfloat16().flatten(1), c.alpha.bfloat16())
            for c in convs
        ],
    ),
    (
        'one call a layer, stem and stage 1 frozen',
        1,
        lambda convs: [c.effective_weight() for c in convs],
    ),
    (
        'the same, without the filters of the frozen layers',
        1,
        lambda convs: [c.effective_weight() for c in convs if c.weight.requires_grad],
    ),
]


def make_step(frozen_stages: int, compute: Callable) -> Callable[[], float]:
    """Return a function that takes a step and returns its seconds."""
    network = PWSResNet(
        DEPTH,
        frozen_stages=frozen_stages,
        conv_cfg=dict(type='PWS'),
        norm_cfg=None,
        stem_norm_cfg=None,
    )
    network.train()  # freezes the stages; returns nothing in MMDetection
    convs = [m for m in network.modules() if isinstance(m, PWSConv2d)]
    grads = [torch.randn_like(filters) for filters in compute(convs)]

    def step() -> float:
        start = perf_counter()
        pairs = zip(compute(convs), grads, strict=True)
        torch.autograd.backward(
            *zip(*[(f, g) for f, g in pairs if f.requires_grad], strict=True)
        )
        seconds = perf_counter() - start
        network.zero_grad()
        return seconds

    return step
