"""Checkpoints are written whole or not at all, and under a name with their hash."""

import hashlib

import pytest
import torch

from pws_mmdet.checkpoint import publish_checkpoint, read_checkpoint, write_checkpoint

CONTENT = dict(state_dict=dict(w=torch.arange(3.0)))


def test_a_written_checkpoint_is_read_again(tmp_path):
    out = tmp_path / 'new/folder/net.pth'
    write_checkpoint(CONTENT, out)
    torch.testing.assert_close(read_checkpoint(out).weights, CONTENT['state_dict'])
    assert list(out.parent.iterdir()) == [out]


def test_the_name_of_the_file_does_not_change_its_bytes(tmp_path):
    write_checkpoint(CONTENT, tmp_path / 'one.pth')
    write_checkpoint(CONTENT, tmp_path / 'two.pth')
    path = publish_checkpoint(CONTENT, tmp_path / 'three.pth')
    data = (tmp_path / 'one.pth').read_bytes()
    assert data == (tmp_path / 'two.pth').read_bytes() == path.read_bytes()
    assert path.stem == f'three-{hashlib.sha256(data).hexdigest()[:8]}'


@pytest.mark.parametrize('write', [write_checkpoint, publish_checkpoint])
def test_the_name_must_end_in_pth(tmp_path, write):
    with pytest.raises(ValueError, match='OUT must end in .pth'):
        write(CONTENT, tmp_path / 'net.pt')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('write', [write_checkpoint, publish_checkpoint])
def test_an_existing_file_is_not_overwritten(tmp_path, write):
    out = tmp_path / 'net.pth'
    out.write_text('mine')
    with pytest.raises(FileExistsError, match='net.pth exists: move it away'):
        write(CONTENT, out)
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == 'mine'


def test_a_published_link_is_not_overwritten_by_a_plain_file(tmp_path):
    out = tmp_path / 'net.pth'
    path = publish_checkpoint(CONTENT, out)
    with pytest.raises(FileExistsError):
        write_checkpoint(CONTENT, out)
    path.unlink()  # the link now points to nothing
    with pytest.raises(FileExistsError):
        write_checkpoint(CONTENT, out)
    assert out.is_symlink()


def test_a_failed_write_leaves_no_file(tmp_path):
    out = tmp_path / 'net.pth'
    with pytest.raises(AttributeError):
        write_checkpoint(dict(f=lambda: None), out)  # cannot be pickled
    assert list(tmp_path.iterdir()) == []
