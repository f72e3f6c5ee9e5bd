"""Wrong arguments are refused where they are given."""

import argparse

import pytest

from pws_mmdet.utils.arguments import (
    check_flags,
    check_integers,
    check_names,
    check_positive,
    positive,
)


def test_positive_refuses_zero_infinity_and_text():
    parser = argparse.ArgumentParser()
    parser.add_argument('--steps', type=positive(int))
    parser.add_argument('--rate', type=positive(float))
    args = parser.parse_args(['--steps', '3', '--rate', '0.5'])
    assert (args.steps, args.rate) == (3, 0.5)
    for text in ('0', '-1', 'inf', 'nan', 'x'):
        for option in ('--steps', '--rate'):
            with pytest.raises(SystemExit):
                parser.parse_args([f'{option}={text}'])


def test_check_names():
    class Given:
        def __init__(self, size, *, depth=1):
            pass

    class Any(Given):
        def __init__(self, **kwargs):
            pass

    check_names(Given, ['size', 'depth'])
    check_names(Any, ['anything'])
    with pytest.raises(
        TypeError, match="Given has no argument 'dept'; it has size, de"
    ):
        check_names(Given, ['size', 'dept'])


def test_check_integers():
    check_integers(1, size=2)
    check_integers(0, pairs=True, size=(0, 1))
    for bad in (0, 1.5, True, '3', None, (2, 2)):
        with pytest.raises(ValueError, match='size must be an integer of at least 1'):
            check_integers(1, size=bad)
    for bad in ((1, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match='at least 0, or two of them, got'):
            check_integers(0, pairs=True, size=bad)


def test_check_flags():
    check_flags(a=True, b=False)
    with pytest.raises(ValueError, match='b must be True or False, got 1'):
        check_flags(a=True, b=1)


def test_check_positive():
    check_positive(eps=1e-9, gain=2)
    for bad in (0, -1.0, float('nan'), float('inf'), True, '1', None, 10**400):
        with pytest.raises(ValueError, match='eps must be positive and finite, got'):
            check_positive(gain=1, eps=bad)
