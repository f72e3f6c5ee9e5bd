"""Checkpoints are read, checked and written."""

import hashlib

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, MMDistributedDataParallel
from mmengine.runner import load_checkpoint
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.checkpoint.read import classes_of, read_checkpoint
from pws_mmdet.checkpoint.weights import check_finite, check_kind
from pws_mmdet.checkpoint.write import publish_checkpoint, write_checkpoint
from pws_mmdet.utils.files import check_new_path

CONTENT = dict(state_dict=dict(w=torch.arange(3.0)))


def test_a_checkpoint_comes_back(tmp_path):
    out = tmp_path / 'new/folder/net.pth'
    write_checkpoint(CONTENT, out)
    torch.testing.assert_close(read_checkpoint(out).weights, CONTENT['state_dict'])
    assert list(out.parent.iterdir()) == [out]


def test_a_bare_state_dict_is_read_too(tmp_path):
    write_checkpoint(CONTENT['state_dict'], tmp_path / 'net.pth')
    assert read_checkpoint(tmp_path / 'net.pth').weights.keys() == {'w'}


@pytest.mark.parametrize(
    'content', [{}, dict(state_dict={}), dict(state_dict=3), [1], {1: torch.ones(1)}]
)
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(ValueError, match='net.pth: it holds no weights'):
        read_checkpoint(tmp_path / 'net.pth')


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
def test_the_classes_of_a_checkpoint(meta, names):
    assert classes_of(dict(state_dict={}, meta=meta)) == names


def test_check_finite():
    weights = dict(a=torch.ones(2), n=torch.tensor(3))
    check_finite(weights, 'net.pth')
    for name in 'bcde':
        weights[name] = torch.tensor([1.0, float('nan' if name < 'd' else 'inf')])
    with pytest.raises(ValueError, match='net.pth has NaN .* in b, c, d and 1 more'):
        check_finite(weights, 'net.pth')


@pytest.mark.parametrize('wrap', [False, True])
def test_check_finite_spares_what_a_network_has_itself(wrap):
    model = nn.Linear(2, 1)
    model.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    if wrap:
        model = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
        nn.Module.__init__(model)
        model.module = nn.Linear(2, 1)
        model.module.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
    check_finite(weights, 'net.pth', model)
    check_finite(dict(weights, mask=torch.full((3,), -torch.inf)), 'it', model)
    for name in ('mask', 'bias'):
        bad = dict(weights, **{name: weights[name].clone()})
        bad[name][0] = torch.nan
        with pytest.raises(ValueError, match=f'it has NaN or infinity in {name}: '):
            check_finite(bad, 'it', model)


def block(kind):
    conv_cfg = dict(type='PWS') if kind == 'PWS' else None
    norm_cfg = dict(type=kind) if kind in ('BN', 'SyncBN') else None
    return ConvModule(2, 2, 3, conv_cfg=conv_cfg, norm_cfg=norm_cfg)


class Pair(nn.Module):
    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = block(one), block(two)


KINDS = ('PWS', 'BN', 'SyncBN', 'plain')


@pytest.mark.parametrize('ours', KINDS)
@pytest.mark.parametrize('theirs', KINDS)
def test_weights_of_another_kind(ours, theirs):
    model, weights = block(ours), block(theirs).state_dict()
    if (ours == 'PWS') == (theirs == 'PWS'):
        return check_kind(model, weights)
    kind = 'of plain convolutions' if theirs == 'plain' else 'with BN'
    message = f'network {kind}, and this one has PWS in conv. tools/.*bn_to_pws.py'
    if ours != 'PWS':
        message = 'of a PWS checkpoint, and this network has other convolutions in conv'
    for module in (model, nn.DataParallel(model)):
        for prefix in ('', 'module.'):
            with pytest.raises(ValueError, match=message):
                check_kind(module, {prefix + k: v for k, v in weights.items()})


def test_layers_of_one_network_alone_do_not_count():
    """To start from a part of another network is no mistake, nor are both kinds."""
    check_kind(Pair('PWS', 'BN'), Pair('PWS', 'BN').state_dict())
    backbone = {f'one.{k}': v for k, v in block('PWS').state_dict().items()}
    check_kind(Pair('PWS', 'BN'), {**backbone, 'head.weight': torch.ones(2, 2, 1, 1)})
    check_kind(block('PWS'), {'other.weight': torch.ones(2, 2, 3, 3)})
    check_kind(PWSConv2d(2, 2, 3, alpha='fixed'), nn.Conv2d(2, 2, 3).state_dict())
    with pytest.raises(
        ValueError, match='with other convolutions than PWS in two.conv'
    ):
        check_kind(Pair('PWS', 'PWS'), Pair('PWS', 'BN').state_dict())


class Quantized(nn.Conv2d):
    """As of LSQ or PACT, by other people."""

    def __init__(self, *args):
        super().__init__(*args)
        self.alpha = nn.Parameter(torch.ones(1))
        self.alphas = nn.Parameter(torch.ones(2))


def test_an_alpha_of_other_people_is_no_alpha_of_ours(tmp_path):
    model = nn.Sequential(Quantized(2, 2, 3), nn.BatchNorm2d(2), PWSConv2d(2, 2, 3))
    check_kind(model, model.state_dict())
    check_kind(Quantized(2, 2, 3), nn.Conv2d(2, 2, 3).state_dict())
    with pytest.raises(ValueError, match='of a PWS checkpoint'):
        check_kind(block('plain'), block('PWS').state_dict())
    path = str(tmp_path / 'own.pth')
    torch.save(model.state_dict(), path)
    load_checkpoint(model, path)


def test_bn_that_the_network_has_itself_is_no_sign_of_another_kind(tmp_path):
    """Nor are parts of a checkpoint, or BN elsewhere."""
    path = str(tmp_path / 'x.pth')
    model = nn.Sequential(block('PWS'), block('BN'))
    weights = {
        **nn.Sequential(block('plain'), block('BN')).state_dict(),
        'head.bn.running_mean': torch.ones(2),
    }
    torch.save(weights, path)
    load_checkpoint(model, path)
    with_bn = ConvModule(2, 2, 3, conv_cfg=dict(type='PWS'), norm_cfg=dict(type='BN'))
    torch.save(block('BN').state_dict(), path)
    load_checkpoint(with_bn, path)
    with pytest.raises(ValueError, match='with BN, and this one has PWS in conv'):
        load_checkpoint(block('PWS'), path)
    with pytest.raises(ValueError, match='with BN, and this one has PWS in conv'):
        block('PWS').load_state_dict(block('BN').state_dict(), strict=False)


def test_filters_of_plain_convolutions_are_a_start():
    check_kind(block('PWS'), block('plain').state_dict(), as_start=True)
    check_kind(Pair('PWS', 'PWS'), Pair('PWS', 'plain').state_dict(), as_start=True)
    for ours, theirs in (('PWS', 'BN'), ('plain', 'PWS')):
        with pytest.raises(ValueError, match='these are the weights of'):
            check_kind(block(ours), block(theirs).state_dict(), as_start=True)


def test_mmengine_does_not_load_the_other_kind(tmp_path):
    """As init_detector does, and an init_cfg."""
    path = str(tmp_path / 'bn.pth')
    torch.save(block('BN').state_dict(), path)
    with pytest.raises(ValueError, match='of a network with BN'):
        load_checkpoint(block('PWS'), path)
    load_checkpoint(block('BN'), path)

    class Net(BaseModule):
        def __init__(self, **init_cfg):
            super().__init__(dict(type='Pretrained', checkpoint=path, **init_cfg))
            self.conv = PWSConv2d(2, 2, 3)

    with pytest.raises(ValueError, match='of a network with BN'):
        Net().init_weights()
    torch.save({f'x.{k}': v for k, v in block('BN').state_dict().items()}, path)
    with pytest.raises(ValueError, match='of a network with BN'):
        Net(prefix='x.').init_weights()


def test_what_cannot_be_written_is_known_beforehand(tmp_path, monkeypatch):
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
