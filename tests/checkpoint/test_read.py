"""The weights and the classes of a checkpoint are read."""

import pytest
import torch

from pws_mmdet.checkpoint.read import classes_of, read_checkpoint, weights_of


@pytest.mark.parametrize(
    'content',
    [
        dict(w=torch.ones(2)),
        dict(state_dict=dict(w=torch.ones(2)), meta=dict(epoch=1)),
        dict(model={'module.w': torch.ones(2)}),
    ],
    ids='bare state_dict model'.split(),
)
def test_weights_are_read_from_every_layout(tmp_path, content):
    torch.save(content, tmp_path / 'net.pth')
    weights, dataset_meta = read_checkpoint(tmp_path / 'net.pth')
    torch.testing.assert_close(weights, dict(w=torch.ones(2)))
    assert dataset_meta is None


def test_the_classes_are_read_with_the_weights(tmp_path):
    meta = dict(dataset_meta=dict(classes=('a', 'b')))
    torch.save(dict(state_dict=dict(w=torch.ones(2)), meta=meta), tmp_path / 'net.pth')
    checkpoint = read_checkpoint(tmp_path / 'net.pth')
    assert checkpoint.dataset_meta == dict(classes=('a', 'b'))


def test_a_prefix_selects_weights(tmp_path):
    weights = {'backbone.w': torch.ones(1), 'head.w': torch.ones(2)}
    torch.save(dict(state_dict=weights), tmp_path / 'net.pth')
    for prefix in ('backbone', 'backbone.'):
        found = read_checkpoint(tmp_path / 'net.pth', prefix).weights
        torch.testing.assert_close(found, dict(w=torch.ones(1)))
    message = r'net.pth: none of its weights is named neck\.\*, but backbone\.\*, head'
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / 'net.pth', 'neck.')


@pytest.mark.parametrize(
    'content', [{}, dict(state_dict={}), dict(state_dict=3), [1], {1: torch.ones(1)}]
)
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(ValueError, match='net.pth: it holds no weights'):
        read_checkpoint(tmp_path / 'net.pth')


@pytest.mark.parametrize(
    'meta, names',
    [
        (dict(dataset_meta=dict(classes=['a', 'b'])), ('a', 'b')),
        (dict(dataset_meta=dict(CLASSES=('a',))), ('a',)),
        (dict(CLASSES=('a',)), ('a',)),  # MMDetection 2
        (dict(dataset_meta=dict(classes=None)), ()),
        (dict(dataset_meta=3, CLASSES='ab'), ()),
        (None, ()),
    ],
)
def test_classes_of(meta, names):
    assert classes_of(dict(state_dict={}, meta=meta)) == names


def test_weights_of_a_content():
    assert 'conv1.weight' in weights_of({'module.conv1.weight': torch.zeros(1)})
    for content in ({}, [1], dict(state_dict={}), dict(epoch=1)):
        with pytest.raises(ValueError, match='no weights'):
            weights_of(content)
    with pytest.raises(ValueError, match=r'named backbone.*, but conv1'):
        weights_of(dict(state_dict={'conv1.weight': torch.zeros(1)}), 'backbone')
