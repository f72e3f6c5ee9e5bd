"""Tests of pws_mmdet.convert.checkpoint: what the converters have in common."""

import hashlib

import pytest
import torch

from pws_mmdet.convert.checkpoint import (
    check_finite,
    load_weights,
    publish_checkpoint,
    write_checkpoint,
)

CONTENT = dict(state_dict=dict(w=torch.arange(3.0)))


def test_a_checkpoint_comes_back(tmp_path):
    out = tmp_path / 'new/folder/net.pth'
    write_checkpoint(CONTENT, out)
    torch.testing.assert_close(load_weights(out), CONTENT['state_dict'])
    assert list(out.parent.iterdir()) == [out]


def test_a_bare_state_dict_is_read_too(tmp_path):
    write_checkpoint(CONTENT['state_dict'], tmp_path / 'net.pth')
    assert load_weights(tmp_path / 'net.pth').keys() == {'w'}


@pytest.mark.parametrize(
    'content', [{}, dict(state_dict={}), dict(state_dict=3), [1], {1: torch.ones(1)}]
)
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(ValueError, match='net.pth: it holds no weights'):
        load_weights(tmp_path / 'net.pth')


def test_the_name_does_not_change_the_bytes(tmp_path):
    write_checkpoint(CONTENT, tmp_path / 'one.pth')
    write_checkpoint(CONTENT, tmp_path / 'two.pth')
    path = publish_checkpoint(CONTENT, tmp_path / 'three.pth')
    data = (tmp_path / 'one.pth').read_bytes()
    assert data == (tmp_path / 'two.pth').read_bytes() == path.read_bytes()
    assert path.stem == f'three-{hashlib.sha256(data).hexdigest()[:8]}'


@pytest.mark.parametrize('write', [write_checkpoint, publish_checkpoint])
def test_another_suffix_is_refused(tmp_path, write):
    with pytest.raises(ValueError, match='OUT must end in .pth'):
        write(CONTENT, tmp_path / 'net.pt')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('write', [write_checkpoint, publish_checkpoint])
def test_a_file_is_not_overwritten(tmp_path, write):
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
    path.unlink()  # nor a link to nothing
    with pytest.raises(FileExistsError):
        write_checkpoint(CONTENT, out)
    assert out.is_symlink()


def test_a_failure_leaves_nothing_behind(tmp_path):
    out = tmp_path / 'net.pth'
    with pytest.raises(AttributeError):
        write_checkpoint(dict(f=lambda: None), out)  # cannot be pickled
    assert list(tmp_path.iterdir()) == []


def test_check_finite():
    weights = dict(a=torch.ones(2), n=torch.tensor(3))
    check_finite(weights, 'net.pth')
    for name in 'bcde':
        weights[name] = torch.tensor([1.0, float('nan' if name < 'd' else 'inf')])
    with pytest.raises(ValueError, match='net.pth has NaN .* in b, c, d and 1 more'):
        check_finite(weights, 'net.pth')
