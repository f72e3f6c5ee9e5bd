"""Check arguments where they are given, so that errors name them."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any


def positive(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type for argparse that accepts positive finite numbers.

    Args:
        number: ``int`` or ``float``.
    """

    def read(text: str) -> Any:
        value = number(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    read.__name__ = f'positive {number.__name__}'
    return read


def check_names(cls: Any, names: Iterable[str]) -> None:
    """Check that ``__init__`` of a class has the named arguments.

    If it takes ``**kwargs``, every name is accepted.

    Args:
        cls: The class.
        names: Names of arguments.

    Raises:
        TypeError: If it lacks one. It lists those that the class has.
    """
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TypeError(
            f'{cls.__name__} has no argument {", ".join(map(repr, unknown))}; it has '
            f'{", ".join(known) or "none"}'
        )


def check_integers(least: int, pairs: bool = False, **values: Any) -> None:
    """Check that values are integers of at least ``least``.

    Args:
        least: The smallest integer allowed.
        pairs: Allow a list or tuple of two such integers, too.
        **values: The values by the names of their arguments.

    Raises:
        ValueError: If one is not.
    """
    for name, value in values.items():
        is_pair = pairs and isinstance(value, (tuple, list)) and len(value) == 2
        for number in value if is_pair else [value]:
            is_integer = isinstance(number, Integral) and not isinstance(number, bool)
            if not is_integer or number < least:
                raise ValueError(
                    f'{name} must be an integer of at least {least}'
                    f'{", or two of them" if pairs else ""}, got {value!r}'
                )


def check_flags(**values: Any) -> None:
    """Check that values, by the names of their arguments, are True or False.

    Raises:
        ValueError: If one is not.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f'{name} must be True or False, got {value!r}')


def check_positive(**values: Any) -> None:
    """Check that values, by the names of their arguments, are positive and finite.

    Raises:
        ValueError: If one is not.
    """
    for name, value in values.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        # an integer may exceed any float
        if not is_number or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
            raise ValueError(f'{name} must be positive and finite, got {value!r}')
