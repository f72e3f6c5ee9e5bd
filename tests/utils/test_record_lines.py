"""Files with one record in a line. tests/paper writes them from several processes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pws_mmdet.utils.records import put_record, read_records


def test_records_are_added_in_order(tmp_path):
    path = tmp_path / 'new' / 'a.jsonl'
    records = [dict(a=1), dict(b=[2.5, None, 'é']), dict(a=1)]
    for record in records:
        put_record(path, record)
    assert read_records(path) == records


def test_a_record_replaces_the_lines_that_are_named(tmp_path):
    path = tmp_path / 'a.jsonl'
    for value in (1, 2, 3):
        put_record(path, dict(a=value))
    put_record(path, dict(a=4), lambda line: '2' in line)
    assert read_records(path) == [dict(a=1), dict(a=3), dict(a=4)]


@pytest.mark.parametrize('existing', [True, False])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, existing):
    path = tmp_path / 'a.jsonl'
    if existing:
        put_record(path, dict(a=1))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fill(self, text, **kwargs):
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_text', fill)
        with pytest.raises(OSError, match='no space'):
            put_record(path, dict(a=2))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    with ThreadPoolExecutor() as pool:
        text = pool.submit(path.read_text)
        put_record(path, dict(a=1))
        assert text.result(timeout=60) == '{"a": 1}\n'


@pytest.mark.parametrize(
    'text, message', [('{"a": ', 'line 2: not JSON'), ('[1]', 'line 2: not a record')]
)
def test_a_broken_line_is_named(tmp_path, text, message):
    path = tmp_path / 'a.jsonl'
    path.write_text(f'{{"a": 1}}\n{text}\n')
    with pytest.raises(ValueError, match=f'a.jsonl, {message}'):
        read_records(path)
