"""Lists of names in messages."""

from collections.abc import Collection
from itertools import islice


def first_names(names: Collection[object], count: int = 3) -> str:
    """Join the first names, and say how many more there are: 'a, b, c and 2 more'."""
    text = ', '.join(map(str, islice(names, count)))
    more = len(names) - count
    return f'{text} and {more} more' if more > 0 else text
