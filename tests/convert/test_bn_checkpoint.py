"""Tests of convert_checkpoint: the checkpoint of a network with BN becomes PWS."""

import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, load_config
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.convert import convert_checkpoint, fuse_checkpoint
from pws_mmdet.convert.fuse_checkpoint import STOCK
from pws_mmdet.convert.images import find_images

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


CHANNELS = [64, 128, 64, 32]
# An eighth of the channels
NARROW = {
    'model.backbone.width': 0.125,
    'model.neck.in_channels': CHANNELS[:2],
    'model.neck.out_channels': CHANNELS,
    'model.bbox_head.in_channels': CHANNELS,
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
CHANNEL = dict(cfg_options={**NARROW, 'model.bbox_head.conv_cfg.alpha': 'channel'})


@pytest.mark.slow
def test_a_detector(ssd, digits, tmp_path):
    model, path = ssd
    out = tmp_path / 'new/pws.pth'
    images = digits / 'train2017'
    written = convert_checkpoint(PWS_SSD, path, out, images, num_images=4, **CHANNEL)
    made = torch.load(out, weights_only=True)
    assert made['meta']['dataset_meta'] == dict(classes=['digit'] * 10)
    printed = str(written)
    assert 'backbone.stages.0.0.conv: fitted, relative error' in printed
    assert '27 convolutions were converted. On the same images, ' in printed

    pws = narrow_ssd(PWS_SSD, CHANNEL['cfg_options'])
    pws.load_state_dict(made['state_dict'])
    pws.eval()
    images = [cv2.imread(str(path)) for path in (digits / 'val2017').iterdir()]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() for p in images])
    x = model.data_preprocessor(dict(inputs=list(x)))['inputs']
    with torch.no_grad():
        scores = [
            net.bbox_head(net.neck(net.backbone(x)))[0][0] for net in (pws, model)
        ]
    centered = scores[1] - scores[1].mean((0, 2, 3), keepdim=True)
    assert (scores[0] - scores[1]).norm() < 0.7 * centered.norm()


@pytest.mark.slow
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_weights_of_a_backbone_alone(digits, tmp_path, prefix):
    """Such as torchvision's. The detector's preprocessor normalizes the images."""
    config = tmp_path / 'stock_order.py'
    config.write_text(
        f"_base_ = '{ROOT / MASK_RCNN.format('pws')}'\n"
        "init_cfg = dict(type='PWSPretrained', checkpoint='nowhere.pth')\n"
        'stock_order = dict(pre_activation=False, stem_norm_cfg=None)\n'
        'model = dict(\n'
        '    backbone=dict(init_cfg=init_cfg, base_channels=8, **stock_order))\n'
    )
    cfg = Config.fromfile(config)
    backbone = {**cfg.model.backbone, 'conv_cfg': None, 'norm_cfg': dict(type='BN')}
    backbone.pop('init_cfg')
    bn = settle(MODELS.build(backbone))
    weights = {prefix + key: value for key, value in bn.state_dict().items()}
    weights['fc.weight' if not prefix else 'head.fc.weight'] = torch.zeros(10, 8)
    path, out = tmp_path / 'bn.pth', tmp_path / 'pws.pth'
    torch.save(weights, path)
    options = dict(calibrate=digits / 'val2017', num_images=2)
    printed = str(convert_checkpoint(config, path, out, **options))
    assert 'pws.pth, the backbone, with 2 images' in printed
    options.update(unaligned=['layer2'])
    printed = str(convert_checkpoint(config, path, tmp_path / 'local.pth', **options))
    assert 'layer1.0.conv1: fitted' in printed and 'layer2.0.conv1: local' in printed
    pretrained = dict(type='Pretrained', checkpoint=str(out))
    backbone = {**cfg.model.backbone, 'init_cfg': pretrained}
    net = MODELS.build(backbone)
    net.init_weights()
    state = torch.load(out, weights_only=True)['state_dict']
    assert state.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert any(isinstance(m, PWSConv2d) for m in net.modules())


def test_images(digits, tmp_path):
    folder = digits / 'train2017'
    all_of_them = find_images(str(folder), 12, 0)
    assert sorted(all_of_them) == sorted(map(str, folder.iterdir()))
    some = find_images(str(folder), 5, 0)
    assert len(set(some)) == 5 and set(some) < set(all_of_them)
    assert find_images(str(folder), 5, 0) == some
    assert len(find_images(str(folder), 99, 0)) == 12  # there are no more

    config = tmp_path / 'data.py'
    config.write_text(
        f"_base_ = '{PWS_SSD}'\n"
        f"train_dataloader = dict(dataset=dict(data_root='{digits}/'))\n"
    )
    found = find_images(str(config), 12, 0)
    assert {p.split('/')[-1] for p in found} == {p.name for p in folder.iterdir()}


def error(*args, **options):
    with pytest.raises((OSError, RuntimeError, ValueError)) as info:
        convert_checkpoint(*args, **options)
    return str(info.value)


def test_bad_input(ssd, digits, tmp_path):
    _, path = ssd
    out = tmp_path / 'out.pth'
    assert "alpha must be 'channel'" in error(PWS_SSD, path, out)
    assert 'must end in .pth' in error(PWS_SSD, path, tmp_path / 'out')
    assert 'exists: move it away' in error(PWS_SSD, path, path)
    assert 'There is no checkpoint' in error(PWS_SSD, tmp_path / 'no.pth', out)
    assert 'no.py' in error(tmp_path / 'no.py', path, out)
    assert 'no folder or config' in error(PWS_SSD, path, out, 'no')
    (tmp_path / 'empty').mkdir()
    empty = error(PWS_SSD, path, out, tmp_path / 'empty')
    assert 'no calibration images: 0 in' in empty
    images = digits / 'train2017'
    assert 'num_images is 0' in error(PWS_SSD, path, out, images, num_images=0)
    assert 'max_scale must' in error(PWS_SSD, path, out, max_scale=0.5)
    assert "unaligned: '[' is no" in error(PWS_SSD, path, out, unaligned=['['])
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad/image.png').write_bytes(b'no image')
    bad = error(PWS_SSD, path, out, tmp_path / 'bad', **CHANNEL)
    assert 'image.png cannot be read' in bad
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(path.read_bytes()[:5000])
    assert 'truncated' in error(PWS_SSD, truncated, out)
    bn = ROOT / 'configs/mini/ssd96_vgg16_bn_digits.py'
    assert 'has no PWS convolutions' in error(bn, path, out)
    other = ROOT / MASK_RCNN.format('pws')
    assert 'set pre_activation=False' in error(other, path, out)
    wide = {**CHANNEL['cfg_options'], 'model.backbone.width': 0.5}
    assert 'do not fit the network' in error(PWS_SSD, path, out, cfg_options=wide)
    pws = tmp_path / 'pws.pth'
    torch.save(narrow_ssd(PWS_SSD).state_dict(), pws)
    assert 'with PWS already' in error(PWS_SSD, pws, out, **CHANNEL)
    weights = torch.load(path, weights_only=True)['state_dict']
    weights['backbone.conv6.conv.weight'] *= np.nan
    torch.save(weights, tmp_path / 'nan.pth')
    assert 'NaN' in error(PWS_SSD, tmp_path / 'nan.pth', out, **CHANNEL)
    assert not out.exists()


def test_bad_input_is_refused_before_the_conversion(ssd, digits, tmp_path, monkeypatch):
    _, path = ssd
    out = tmp_path / 'out.pth'
    monkeypatch.setattr('pws_mmdet.convert.bn_checkpoint.load_bn_weights', None)
    for device in ('none', 'cuda:77', 'meta'):
        message = error(PWS_SSD, path, out, device=device)
        assert message.startswith(f'device {device}: ')
    for size in (0, -1):
        message = f'batch_size must be 1 or more, got {size}'
        assert message in error(PWS_SSD, path, out, batch_size=size)
    data = tmp_path / 'data.py'
    data.write_text('x = 1\n')
    assert 'data.py: ValueError: it has no train_dataloader with a dataset' in error(
        PWS_SSD, path, out, data
    )
    data.write_text("train_dataloader = dict(dataset=dict(type='Nothing'))\n")
    assert f'calibrate {data}: KeyError' in error(PWS_SSD, path, out, data)
    config = tmp_path / 'no_test.py'
    config.write_text(f"_base_ = '{PWS_SSD}'\ntest_dataloader = None\n")
    images = digits / 'val2017'
    assert 'no_test.py has no test_dataloader' in error(config, path, out, images)
    out.symlink_to(tmp_path / 'nowhere')
    assert 'out.pth exists' in error(PWS_SSD, path, out)
    assert 'is no folder' in error(PWS_SSD, path, path / 'out.pth')
    unknown = 'torchvision://vgg1', tmp_path / 'new.pth'
    assert "no weights named 'vgg1'. Did you mean vgg" in error(PWS_SSD, *unknown)


def test_eps(ssd, tmp_path, monkeypatch):
    """The argument decides, or else the init_cfg of the config, or else torch."""
    given = []

    def note(model, weights, batches, bn_eps, conv_ws, **options):
        given.append(bn_eps)
        raise ValueError('enough')

    monkeypatch.setattr('pws_mmdet.convert.bn_checkpoint.load_bn_weights', note)
    arguments = PWS_SSD, ssd[1], tmp_path / 'out.pth'
    for options in ({}, dict(bn_eps=1e-3)):
        error(*arguments, **options)
    assert given == [1e-5, 1e-3]
    start = dict(type='PWSPretrained', checkpoint='x.pth', bn_eps=0.5)
    config = tmp_path / 'named.py'
    config.write_text(
        f"_base_ = '{PWS_SSD}'\nmodel = dict(backbone=dict(init_cfg={start!r}))\n"
    )
    error(config, *arguments[1:])
    assert given[-1] == 0.5


R50 = ROOT / 'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py'


@pytest.mark.slow
def test_from_torchvision_to_plain_convolutions(run, tmp_path, monkeypatch):
    """The steps of docs/convert.md, from weights with torchvision's names.

    MMDetection loads the result in a process that cannot import pws_mmdet. There it
    computes what the converted network computes here.
    """
    classifier = settle(MODELS.build(dict(type='ResNet', depth=50))).state_dict()
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
