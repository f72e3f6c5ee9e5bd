"""Weights are checked before a network loads them, and loaded strictly."""

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, MMDistributedDataParallel
from mmengine.runner import load_checkpoint
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.checkpoint import check_finite, check_kind, load_strictly


def test_check_finite_names_the_first_tensors():
    weights = dict(a=torch.ones(2), n=torch.tensor(3))
    check_finite(weights, 'net.pth')
    for name in 'bcde':
        weights[name] = torch.tensor([1.0, float('nan' if name < 'd' else 'inf')])
    with pytest.raises(ValueError, match='net.pth has NaN .* in b, c, d and 1 more'):
        check_finite(weights, 'net.pth')


@pytest.mark.parametrize('wrap', [False, True])
def test_check_finite_allows_infinity_where_the_network_has_it(wrap):
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
def test_check_kind_refuses_weights_of_the_other_kind(ours, theirs):
    model, weights = block(ours), block(theirs).state_dict()
    if (ours == 'PWS') == (theirs == 'PWS'):
        return check_kind(model, weights)
    kind = 'of plain convolutions' if theirs == 'plain' else 'with BN'
    message = f'network {kind}, and this one has PWS in conv. pws-convert'
    if ours != 'PWS':
        message = 'of a PWS checkpoint, and this network has other convolutions in conv'
    for module in (model, nn.DataParallel(model)):
        for prefix in ('', 'module.'):
            with pytest.raises(ValueError, match=message):
                check_kind(module, {prefix + k: v for k, v in weights.items()})


def test_check_kind_skips_layers_that_only_one_network_has():
    """Weights of a part of a network are allowed. So are networks of both kinds."""
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
    """A quantized convolution with an alpha of its own, as in LSQ or PACT."""

    def __init__(self, *args):
        super().__init__(*args)
        self.alpha = nn.Parameter(torch.ones(1))
        self.alphas = nn.Parameter(torch.ones(2))


def test_check_kind_allows_the_alpha_of_quantized_layers(tmp_path):
    model = nn.Sequential(Quantized(2, 2, 3), nn.BatchNorm2d(2), PWSConv2d(2, 2, 3))
    check_kind(model, model.state_dict())
    check_kind(Quantized(2, 2, 3), nn.Conv2d(2, 2, 3).state_dict())
    with pytest.raises(ValueError, match='of a PWS checkpoint'):
        check_kind(block('plain'), block('PWS').state_dict())
    path = str(tmp_path / 'own.pth')
    torch.save(model.state_dict(), path)
    load_checkpoint(model, path)


def test_load_checkpoint_of_mmengine_allows_bn_where_the_network_has_it(tmp_path):
    """BN in other parts of the checkpoint is allowed, too."""
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


def test_check_kind_allows_plain_convolutions_as_a_start():
    check_kind(block('PWS'), block('plain').state_dict(), as_start=True)
    check_kind(Pair('PWS', 'PWS'), Pair('PWS', 'plain').state_dict(), as_start=True)
    for ours, theirs in (('PWS', 'BN'), ('plain', 'PWS')):
        with pytest.raises(ValueError, match='these are the weights of'):
            check_kind(block(ours), block(theirs).state_dict(), as_start=True)


def test_load_checkpoint_and_init_cfg_refuse_the_other_kind(tmp_path):
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


def test_load_strictly_takes_weights_that_fit_exactly():
    model, weights = nn.Linear(2, 1), nn.Linear(2, 1).state_dict()
    assert load_strictly(model, {f'module.{k}': v for k, v in weights.items()}) == []
    torch.testing.assert_close(model.state_dict(), weights)
    assert load_strictly(model, dict(weights, x=0), allow_unused=True) == ['x']


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda w: w.pop('bias'), 'the weights do not fit the network: they lack bias'),
        (lambda w: w.update(x=w['bias']), 'the network has no x$'),
        (lambda w: w.update(bias=torch.ones(2)), 'network: size mismatch for bias'),
        (lambda w: w['bias'].fill_(torch.inf), 'it has NaN or infinity in bias'),
    ],
    ids='less more shape infinite'.split(),
)
def test_load_strictly_refuses_other_weights(change, message):
    model, weights = nn.Linear(2, 1), nn.Linear(2, 1).state_dict()
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_strictly(model, weights)
