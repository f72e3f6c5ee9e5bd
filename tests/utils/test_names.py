"""Lists of names in messages."""

import pytest

from pws_mmdet.utils.names import first_names


@pytest.mark.parametrize(
    'names, text',
    [
        ([], ''),
        (['a', 'b', 'c'], 'a, b, c'),
        (['a', 'b', 'c', 'd'], 'a, b, c and 1 more'),
        ({1: 'x', 2: 'y', 3: 'z', 4: '', 5: ''}, '1, 2, 3 and 2 more'),
    ],
)
def test_first_names(names, text):
    assert first_names(names) == text
