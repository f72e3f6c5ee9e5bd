"""The progress bar of long work."""

import io

import pytest

from pws_mmdet.utils.progress import progress_bar


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_shows_on_a_terminal_alone(monkeypatch, is_terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr('sys.stderr', stderr)
    with progress_bar(total=4, desc='train', mininterval=0) as bar:
        for _ in range(4):
            bar.update()
    text = stderr.getvalue()
    assert ('train:  50%' in text and '2/4' in text) == is_terminal
    assert bool(text) == is_terminal
