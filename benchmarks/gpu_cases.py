"""What gpu.py measures: networks, settings and kinds of layers.

This module needs no torch: a report can be made even if nothing else works.
"""

from collections.abc import Sequence
from typing import NamedTuple

SETTINGS = {
    'fp32': dict(amp=False, channels_last=False),
    'AMP': dict(amp=True, channels_last=False),
    'AMP, channels last': dict(amp=True, channels_last=True),
}
KINDS = (
    'plain',
    'plain, again',
    'PWS',
    'PWS, group norm',
    'PWS, fused',
    'BN',
    'frozen BN',
    'GN',
    'SN',
    'IN',
    'WN',
    'ConvWS and GN',
    'ScaledWS',
    'DyT',
)
# How much faster than these PWS should train
GOALS = (('BN', 1.15), ('GN', 1.8), ('ScaledWS', 1.0))
CIFAR_KINDS = ('PWS', 'BN', 'GN')


class Case(NamedTuple):
    """Network, batch sizes, and height and width of the images in pixels."""

    part: str
    batch_sizes: Sequence[int]
    image_size: tuple[int, int]


CASES = {
    'ResNet-50': Case('ResNet-50', [64], (224, 224)),
    'VGG-16-SSD320': Case('VGG-16-SSD320', [8, 16], (320, 320)),
    'Mask R-CNN': Case('Mask R-CNN R-50-FPN', [2, 4], (800, 1333)),
}
TOY_CASES = {
    'ResNet-50': Case('ResNet-50', [2], (32, 32)),
    'VGG-16-SSD320': Case('VGG-16-SSD320', [1], (320, 320)),
    'Mask R-CNN': Case('Mask R-CNN R-50-FPN', [1], (64, 96)),
}
TOY_KINDS = ('plain', 'PWS', 'PWS, group norm', 'PWS, fused')
