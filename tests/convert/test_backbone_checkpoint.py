"""Tests of publish_backbone: the backbone of a classifier for a detector."""

import hashlib

import pytest
import torch

from pws_mmdet.convert import publish_backbone
from pws_mmdet.models import PWSResNet

GN1 = dict(type='GN', num_groups=1)


def small_resnet(**kwargs):
    net = PWSResNet(18, base_channels=4, **kwargs)
    net.eval()
    return net


@pytest.fixture
def classifier(tmp_path):
    """Return the backbone of a classifier, and the checkpoint of the classifier."""
    backbone = small_resnet(out_norm_cfg=GN1)
    for p in backbone.parameters():
        torch.nn.init.normal_(p)
    weights = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    weights['head.fc.weight'] = torch.randn(10, 32)
    path = tmp_path / 'epoch_100.pth'
    torch.save(
        dict(meta=dict(epoch=100), state_dict=weights, optimizer=dict(state={})), path
    )
    return backbone, path


def test_the_backbone_of_a_detector_loads_it(classifier, tmp_path):
    backbone, path = classifier
    out = tmp_path / 'new/folder/resnet.pth'
    publish_backbone(path, out)
    weights = torch.load(out, weights_only=True)['state_dict']
    detector = small_resnet(init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    assert weights.keys() == detector.state_dict().keys()
    detector.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # The norm layer of the classifier changes only the last feature map.
        for ours, theirs in zip(detector(x)[:3], backbone(x)[:3], strict=True):
            torch.testing.assert_close(ours, theirs)
        last = detector.layer4(detector.layer3(detector.layer2(stage_1(detector, x))))
        theirs = backbone.out_norm(last).relu()
        torch.testing.assert_close(theirs, backbone(x)[3])


def stage_1(net, x):
    return net.layer1(net.maxpool(net.norm1(net.conv1(x))))


def test_the_name_ends_in_the_hash_of_the_file(classifier, tmp_path):
    out = tmp_path / 'checkpoints/resnet.pth'
    path = publish_backbone(classifier[1], out)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'resnet-{digest[:8]}.pth'
    # The link is relative, so that the folder can be moved.
    assert out.is_symlink() and str(out.readlink()) == path.name
    assert sorted(out.parent.iterdir()) == sorted([path, out])


def test_the_same_weights_give_the_same_file(classifier, tmp_path):
    first = publish_backbone(classifier[1], tmp_path / 'one.pth')
    second = publish_backbone(classifier[1], tmp_path / 'two.pth')
    assert first.read_bytes() == second.read_bytes()


def test_a_new_training_moves_the_link(classifier, tmp_path):
    out = tmp_path / 'resnet.pth'
    first = publish_backbone(classifier[1], out)
    content = torch.load(classifier[1], weights_only=True)
    content['state_dict']['backbone.conv1.alpha'] += 1
    torch.save(content, classifier[1])
    second = publish_backbone(classifier[1], out)
    assert out.resolve() == second != first
    assert first.is_file()


@pytest.mark.parametrize(
    'content, out, message',
    [
        (None, 'out.pth', 'There is no checkpoint'),
        (b'', 'out.pth', 'not a readable checkpoint'),
        (
            {'head.w': torch.ones(1)},
            'out.pth',
            r'none of its weights is named backbone\.\*, but head',
        ),
        (dict(state_dict={}), 'out.pth', 'it holds no weights'),
        (torch.ones(1), 'out.pth', 'it holds no weights'),
        ({'backbone.w': torch.ones(1)}, 'out', 'OUT must end in .pth'),
        ({'backbone.w': torch.ones(1)}, 'mine.pth', 'mine.pth exists: move it away'),
    ],
    ids=str,
)
def test_bad_input(tmp_path, content, out, message):
    checkpoint = tmp_path / 'epoch_100.pth'
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    elif content is not None:
        torch.save(content, checkpoint)
    (tmp_path / 'mine.pth').write_text('mine')
    before = sorted(tmp_path.iterdir())
    with pytest.raises((OSError, RuntimeError, ValueError), match=message):
        publish_backbone(checkpoint, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'mine.pth').read_text() == 'mine'
