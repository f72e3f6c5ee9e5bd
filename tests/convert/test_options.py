"""Tests of the options of a conversion."""

import dataclasses

import pytest
from torch import nn

from pws_mmdet import convert_to_pws
from pws_mmdet.convert import ConversionOptions


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConversionOptions().seed = 1


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sweep'"):
        convert_to_pws(nn.Conv2d(3, 4, 3), sweep=2)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(max_scale=0.5), 'max_scale must be 1 or more, got 0.5'),
        (dict(max_scale=float('nan')), 'max_scale must be 1 or more, got nan'),
        (dict(sweeps=0), 'sweeps must be 1 or more, got 0'),
        (dict(unaligned=['ok', '[']), r"unaligned: '\[' is no regular expression"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConversionOptions(**options)
