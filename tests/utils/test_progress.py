"""The progress bar of long work."""

import io

import pytest

from pws_mmdet.utils.progress import next_stage, progress_bar, stage_bar


def capture_stderr(monkeypatch, is_terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr('sys.stderr', stderr)
    return stderr


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_shows_on_a_terminal_alone(monkeypatch, is_terminal):
    stderr = capture_stderr(monkeypatch, is_terminal)
    with progress_bar(total=4, desc='train', mininterval=0) as bar:
        for _ in range(4):
            bar.update()
    text = stderr.getvalue()
    assert ('train:  50%' in text and '2/4' in text) == is_terminal
    assert bool(text) == is_terminal


@pytest.mark.parametrize('is_terminal', [True, False])
def test_stages_show_their_names(monkeypatch, is_terminal):
    stderr = capture_stderr(monkeypatch, is_terminal)
    with stage_bar('first', 2) as bar:
        next_stage(bar, 'second')
    text = stderr.getvalue()
    assert ('first (step 1 of 2), 00:00 so far' in text) == is_terminal
    assert ('second (step 2 of 2)' in text) == is_terminal
