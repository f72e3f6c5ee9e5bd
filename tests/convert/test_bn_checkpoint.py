"""Tests of convert_checkpoint: the checkpoint of a network with BN becomes PWS."""

import math
import sys
from functools import partial

import pytest
import torch
from bn_networks import check_same
from conftest import ROOT, load_config
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.convert import convert_checkpoint, fuse_checkpoint
from pws_mmdet.convert.plain_checkpoint import STOCK

MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_{}_digits.py'


def settle(model, seed=0):
    """Set statistics, gains and biases of BN as a training could leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model


CONVERTIBLES = [64, 128, 64, 32]
# An eighth of the channels
NARROW = {
    'model.backbone.width': 0.125,
    'model.neck.in_channels': CONVERTIBLES[:2],
    'model.neck.out_channels': CONVERTIBLES,
    'model.bbox_head.in_channels': CONVERTIBLES,
}


def narrow_ssd(config, options=NARROW):
    cfg = load_config(config)
    cfg.merge_from_dict(options)
    return MODELS.build(cfg.model)


@pytest.fixture
def ssd(tmp_path):
    """Return a narrow SSD with BN, and its checkpoint."""
    model = narrow_ssd('configs/mini/ssd96_vgg16_bn_digits.py')
    settle(model)
    model.eval()
    path = tmp_path / 'bn.pth'
    meta = dict(dataset_meta=dict(classes=['digit'] * 10))
    torch.save(dict(state_dict=model.state_dict(), meta=meta, optimizer={}), path)
    return model, path


PWS_SSD = ROOT / 'configs/mini/ssd96_vgg16_pws_digits.py'
CONVERTIBLE = dict(
    cfg_options={
        **NARROW,
        **{
            f'model.{part}.conv_cfg.keep_mean': True
            for part in ('backbone', 'neck', 'bbox_head')
        },
    }
)


def maps_of(model, x):
    """Return the scores and boxes of an SSD at all levels, as one list."""
    scores, boxes = model.bbox_head(model.neck(model.backbone(x)))
    return [*scores, *boxes]


def test_a_detector(ssd, tmp_path):
    model, path = ssd
    out = tmp_path / 'new/pws.pth'
    written = convert_checkpoint(PWS_SSD, path, out, **CONVERTIBLE)
    made = torch.load(out, weights_only=True)
    assert made['meta']['dataset_meta'] == dict(classes=['digit'] * 10)
    assert str(written).splitlines()[-2:] == [
        '27 convolutions were converted',
        f'written: {out}, the network',
    ]
    pws = narrow_ssd(PWS_SSD, CONVERTIBLE['cfg_options'])
    pws.load_state_dict(made['state_dict'])
    pws.eval()
    convs = [m for m in pws.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 27 and all(type(m) is PWSConv2d for m in convs)
    check_same(
        partial(maps_of, pws), partial(maps_of, model), torch.randn(2, 3, 96, 96)
    )


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_weights_of_a_backbone_alone(tmp_path, prefix):
    """Such as torchvision's."""
    config = tmp_path / 'stock_order.py'
    config.write_text(
        f"_base_ = '{ROOT / MASK_RCNN.format('pws')}'\n"
        "init_cfg = dict(type='PWSPretrained', checkpoint='nowhere.pth')\n"
        'stock_order = dict(pre_activation=False, stem_norm_cfg=None)\n'
        'model = dict(backbone=dict(\n'
        '    init_cfg=init_cfg, base_channels=8, conv_cfg=dict(keep_mean=True),\n'
        '    **stock_order))\n'
    )
    cfg = Config.fromfile(config)
    backbone = {**cfg.model.backbone, 'conv_cfg': None, 'norm_cfg': dict(type='BN')}
    backbone.pop('init_cfg')
    bn = settle(MODELS.build(backbone))
    bn.eval()
    weights = {prefix + key: value for key, value in bn.state_dict().items()}
    weights['fc.weight' if not prefix else 'head.fc.weight'] = torch.zeros(10, 8)
    path, out = tmp_path / 'bn.pth', tmp_path / 'pws.pth'
    torch.save(weights, path)
    printed = str(convert_checkpoint(config, path, out))
    assert f'{out}, the backbone' in printed
    assert ('not used: fc.weight' in printed) == (not prefix)
    pretrained = dict(type='Pretrained', checkpoint=str(out))
    backbone = {**cfg.model.backbone, 'init_cfg': pretrained}
    net = MODELS.build(backbone)
    net.init_weights()
    net.eval()
    state = torch.load(out, weights_only=True)['state_dict']
    assert state.keys() == net.state_dict().keys()
    check_same(net, bn, torch.randn(1, 3, 64, 64))


def error(*args, **options):
    with pytest.raises((OSError, RuntimeError, ValueError)) as info:
        convert_checkpoint(*args, **options)
    return str(info.value)


def test_bad_input(ssd, tmp_path):
    _, path = ssd
    out = tmp_path / 'out.pth'
    narrow = dict(cfg_options=NARROW)
    assert 'keep_mean=True' in error(PWS_SSD, path, out, **narrow)
    per_layer = {
        **CONVERTIBLE['cfg_options'],
        'model.bbox_head.conv_cfg.alpha': 'layer',
    }
    assert "alpha must be 'channel'" in error(PWS_SSD, path, out, cfg_options=per_layer)
    assert 'There is no checkpoint' in error(PWS_SSD, tmp_path / 'no.pth', out)
    assert 'no.py' in error(tmp_path / 'no.py', path, out)
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(path.read_bytes()[:5000])
    assert 'truncated' in error(PWS_SSD, truncated, out)
    bn = ROOT / 'configs/mini/ssd96_vgg16_bn_digits.py'
    assert 'has no PWS convolutions' in error(bn, path, out, **narrow)
    other = ROOT / MASK_RCNN.format('pws')
    small = {'model.backbone.base_channels': 8}
    assert 'pre_activation=False' in error(other, path, out, cfg_options=small)
    wide = {**CONVERTIBLE['cfg_options'], 'model.backbone.width': 0.25}
    assert 'do not fit the network' in error(PWS_SSD, path, out, cfg_options=wide)
    pws = tmp_path / 'pws.pth'
    torch.save(narrow_ssd(PWS_SSD).state_dict(), pws)
    assert 'with PWS already' in error(PWS_SSD, pws, out, **CONVERTIBLE)
    weights = torch.load(path, weights_only=True)['state_dict']
    weights['backbone.conv6.conv.weight'] *= math.nan
    torch.save(weights, tmp_path / 'nan.pth')
    assert 'NaN' in error(PWS_SSD, tmp_path / 'nan.pth', out, **CONVERTIBLE)
    assert not out.exists()


def test_bad_paths_are_refused_before_the_conversion(ssd, tmp_path, monkeypatch):
    _, path = ssd
    out = tmp_path / 'out.pth'
    monkeypatch.setattr('pws_mmdet.convert.bn_checkpoint.load_bn_weights', None)
    assert 'must end in .pth' in error(PWS_SSD, path, tmp_path / 'out')
    assert 'exists: move it away' in error(PWS_SSD, path, path)
    out.symlink_to(tmp_path / 'nowhere')
    assert 'out.pth exists' in error(PWS_SSD, path, out)
    assert 'is no folder' in error(PWS_SSD, path, path / 'out.pth')
    unknown = 'torchvision://vgg1', tmp_path / 'new.pth'
    assert "no weights named 'vgg1'. Did you mean vgg" in error(PWS_SSD, *unknown)


def test_what_a_checkpoint_does_not_hold(ssd, tmp_path, monkeypatch):
    """The argument decides, or else the init_cfg of the config, or else a default."""
    given, narrow = [], dict(cfg_options=NARROW)

    def note(model, weights, bn_eps, conv_ws):
        given.append((bn_eps, conv_ws))
        raise ValueError('enough')

    monkeypatch.setattr('pws_mmdet.convert.bn_checkpoint.load_bn_weights', note)
    arguments = PWS_SSD, ssd[1], tmp_path / 'out.pth'
    for options in ({}, dict(bn_eps=1e-3, conv_ws=True)):
        error(*arguments, **options, **narrow)
    assert given == [(1e-5, False), (1e-3, True)]
    start = dict(type='PWSPretrained', checkpoint='x.pth', bn_eps=0.5, conv_ws=True)
    config = tmp_path / 'named.py'
    config.write_text(
        f"_base_ = '{PWS_SSD}'\nmodel = dict(backbone=dict(init_cfg={start!r}))\n"
    )
    error(config, *arguments[1:], **narrow)
    assert given[-1] == (0.5, True)
    error(config, *arguments[1:], bn_eps=1e-4, conv_ws=False, **narrow)
    assert given[-1] == (1e-4, False)


R50 = ROOT / 'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py'


@pytest.mark.slow
def test_from_torchvision_to_plain_convolutions(run, tmp_path, monkeypatch):
    """The steps of docs/convert.md, from weights with torchvision's names.

    MMDetection loads the result in a process that cannot import pws_mmdet. There it
    computes what the converted network computes here.
    """
    bn = settle(MODELS.build(dict(type='ResNet', depth=50)))
    bn.eval()
    classifier = bn.state_dict()
    classifier.update({'fc.weight': torch.zeros(9, 2048), 'fc.bias': torch.zeros(9)})
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    urls = []

    def load_url(url, **kwargs):
        urls.append(url)
        return classifier

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', load_url)
    backbone = tmp_path / 'backbone.pth'
    convert_checkpoint(R50, 'torchvision://resnet50', backbone)
    assert [url.rpartition('/')[2] for url in urls] == ['resnet50-0676ba61.pth']

    cfg = load_config(R50)
    cfg.model.backbone.init_cfg.checkpoint = str(backbone)
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = torch.load(backbone, weights_only=True)['state_dict']
    assert all(
        torch.equal(model.state_dict()[f'backbone.{k}'], state[k]) for k in state
    )
    model.eval()
    x = torch.randn(1, 3, 64, 96)
    check_same(model.backbone, bn, x)
    with torch.no_grad():
        expected = model.extract_feat(x)
    torch.save((x, expected), tmp_path / 'maps.pth')
    trained = tmp_path / 'trained.pth'
    meta = dict(dataset_meta=dict(classes=('one', 'two')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), trained)
    files = fuse_checkpoint(R50, trained, tmp_path / 'plain')
    assert files[0].read_text().startswith(STOCK)
    run(sys.executable, '-c', LOAD_PLAIN, *files, tmp_path / 'maps.pth')


LOAD_PLAIN = """
import sys
sys.modules['pws_mmdet'] = sys.modules['mmpretrain'] = None
import torch
torch.set_num_threads(1)
from mmdet.apis import init_detector
config, checkpoint, maps = sys.argv[1:]
model = init_detector(config, checkpoint, device='cpu')
assert type(model.backbone).__name__ == 'ResNet'
x, expected = torch.load(maps)
with torch.no_grad():
    for made, wanted in zip(model.extract_feat(x), expected, strict=True):
        assert (made - wanted).abs().max() <= 1e-4 * wanted.abs().max()
"""
