"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from pws_mmdet.utils.files import check_new_path, put_in_page, write_whole


def test_check_new_path_refuses_what_cannot_be_made(tmp_path, monkeypatch):
    assert check_new_path(tmp_path / 'new/net.pth', '.pth') == tmp_path / 'new/net.pth'
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError, match='file is no folder'):
        check_new_path(tmp_path / 'file/new/net.pth', '.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'nowhere/net.pth')
    with pytest.raises(FileExistsError, match='link.pth exists'):
        check_new_path(tmp_path / 'link.pth', '.pth')
    monkeypatch.setattr('os.access', lambda path, mode: False)  # root may write all
    with pytest.raises(PermissionError, match='net.pth cannot be written'):
        check_new_path(tmp_path / 'new/net.pth', '.pth')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('folder', ['.', 'elsewhere'])
def test_writing_through_a_link_keeps_the_link(tmp_path, folder):
    link, file = tmp_path / 'link', tmp_path / folder / 'file'
    file.parent.mkdir(exist_ok=True)
    file.write_text('old')
    old = file.stat().st_ino
    link.symlink_to(file)
    write_whole(link, lambda part: part.write_text('new'))
    assert link.is_symlink() and file.read_text() == 'new'
    assert file.stat().st_ino != old  # replaced, not changed
    (tmp_path / 'other').touch()
    write_whole(link, lambda part: part.symlink_to('other'))
    assert os.readlink(link) == 'other' and file.read_text() == 'new'
    assert not list(tmp_path.rglob('.*'))


def test_writing_to_a_pipe(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda part: part.write_text('text'))
    assert os.read(reader, 99) == b'text'
    os.close(reader)
    assert pipe.is_fifo() and os.listdir(tmp_path) == ['pipe']


def test_put_in_page_replaces_only_its_table(tmp_path):
    page = tmp_path / 'page.md'
    put_in_page(page, 'one', 'first\n')
    assert page.read_text() == '<!-- one -->\nfirst\n<!-- /one -->\n'
    page.write_text(f'before\n{page.read_text()}after\n')
    put_in_page(page, 'one', 'second\n')
    assert page.read_text() == 'before\n<!-- one -->\nsecond\n<!-- /one -->\nafter\n'
    with pytest.raises(ValueError, match='page.md exists and has no place'):
        put_in_page(page, 'two', '')


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    def write(part):
        part.write_text('half')
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        write_whole(path, write)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_writer_has_begun_is_left_alone(tmp_path, monkeypatch):
    """Right after one writer has put its file in place, another one may begin."""
    path = tmp_path / 'records.jsonl'
    stock = os.replace

    def replace(partial, target):
        stock(partial, target)
        Path(partial).write_text('of another writer')

    monkeypatch.setattr(os, 'replace', replace)
    write_whole(path, lambda part: part.write_text('first'))
    assert path.read_text() == 'first'
    (partial,) = set(tmp_path.iterdir()) - {path}
    assert partial.read_text() == 'of another writer'
