"""How a training ended."""

import pytest
from outcome import find_reason


@pytest.mark.parametrize(
    'log, reason',
    [
        ('', 'no output'),
        ('a\nusage: train.py\n\n', 'usage: train.py'),
        (
            'ValueError: an old one\n\nDuring handling of the above\n\n'
            'Traceback (most recent call last):\n  File "x", line 1\n'
            'FileNotFoundError: The data is not there. Missing:\n    a  (b)\n'
            '\nsome hint\nat the end\n',
            'FileNotFoundError: The data is not there. Missing: a (b)',
        ),
        (
            '[rank1]: Traceback (most recent call last):\n'
            '[rank1]:   File "x", line 1\n'
            '[rank1]: torch.OutOfMemoryError: CUDA out of memory.\n'
            'E0101 00:00:00.000 1 torch/distributed] failed (exitcode: 1)\n'
            'Traceback (most recent call last):\n'
            'torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n'
            '=====\nFailures:\n  <NO_OTHER_FAILURES>\n=====\n',
            'torch.OutOfMemoryError: CUDA out of memory.',
        ),
        ('Traceback\nKeyboardInterrupt\n', 'KeyboardInterrupt'),
    ],
)
def test_reason_of_a_failure(log, reason):
    assert find_reason(log) == reason
    assert len(find_reason('RuntimeError: ' + 'word ' * 200)) <= 300
