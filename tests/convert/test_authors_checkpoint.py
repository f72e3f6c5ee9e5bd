"""Tests of converting the checkpoints of the paper's authors."""

import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F

from pws_mmdet.convert import convert_authors_checkpoint
from pws_mmdet.convert.authors_checkpoint import from_official
from pws_mmdet.models import PWSResNet

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
GAMMA = 1e-4  # of the authors' ImageNet config


def authors_resnet(depth, width=4, stem_norm='gn1'):
    """Return random weights, named and shaped as in the authors' detection code."""
    weights = {}

    def conv(name, c_in, c_out, kernel_size):
        weights[f'{name}.weight'] = torch.randn(c_out, c_in, kernel_size, kernel_size)
        weights[f'{name}.alpha'] = torch.rand(c_out, 1, 1, 1) + 0.5
        weights[f'{name}.bias'] = torch.randn(c_out)

    def norm(name, channels):
        weights[f'{name}.weight'] = torch.rand(channels) + 0.5
        weights[f'{name}.bias'] = torch.randn(channels)

    conv('conv1', 3, width, 7)
    norm(stem_norm, width)
    c_in = width
    for i, blocks in enumerate(BLOCKS[depth]):
        mid = width * 2**i
        c_out = mid if depth < 50 else 4 * mid
        for j in range(blocks):
            block = f'layer{i + 1}.{j}'
            if depth < 50:
                conv(f'{block}.conv1', c_in, mid, 3)
                conv(f'{block}.conv2', mid, mid, 3)
            else:
                conv(f'{block}.conv1', c_in, mid, 1)
                conv(f'{block}.conv2', mid, mid, 3)
                conv(f'{block}.conv3', mid, c_out, 1)
            if j == 0 and (i > 0 or c_in != c_out):
                conv(f'{block}.downsample.0', c_in, c_out, 1)
            c_in = c_out
        norm(f'gnoutputgn_{i}', c_out)
    return weights


def authors_forward(weights, depth, x):
    """Compute the feature maps of the network from the formulas."""

    def conv(name, x, stride=1):
        w = weights[f'{name}.weight'].double()
        mean = w.mean((1, 2, 3), keepdim=True)
        variance = ((w - mean) ** 2).mean((1, 2, 3), keepdim=True)
        w = math.sqrt(2 / w[0].numel()) * (w - mean) / (variance + GAMMA).sqrt()
        w = weights[f'{name}.alpha'].double() * w
        bias = weights[f'{name}.bias'].double()
        return F.conv2d(x, w, bias, stride, padding=w.shape[-1] // 2)

    x = conv('conv1', x.double(), 2)
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    gain, shift = weights['gn1.weight'].double(), weights['gn1.bias'].double()
    x = x * gain[:, None, None] + shift[:, None, None]
    # The authors' code has a ReLU here at any depth. It changes the result only with
    # basic blocks, whose first identity path has no convolution. The report says so.
    if depth >= 50:
        x = x.relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for i, blocks in enumerate(BLOCKS[depth]):
        for j in range(blocks):
            block = f'layer{i + 1}.{j}'
            stride = 2 if i > 0 and j == 0 else 1
            r = x.relu()
            if depth < 50:
                out = conv(f'{block}.conv1', r, stride)
                out = conv(f'{block}.conv2', out.relu())
            else:
                out = conv(f'{block}.conv1', r)
                out = conv(f'{block}.conv2', out.relu(), stride)
                out = conv(f'{block}.conv3', out.relu())
            if f'{block}.downsample.0.weight' in weights:
                x = conv(f'{block}.downsample.0', r, stride)
            x = out + x
        maps.append(x.relu())
    return maps


def classifier_of(weights):
    """Rename the weights as in the authors' ImageNet code."""
    weights = {
        'backbone.' + re.sub('^gn1', 'norm1', name): value
        for name, value in weights.items()
        if not name.startswith('gnoutputgn')
    }
    for name in ('neck.norm.weight', 'neck.norm.bias', 'head.fc.weight'):
        weights[name] = torch.randn(3)
    return weights


@pytest.mark.parametrize('depth', [18, 50])
def test_the_converted_network_computes_the_same(tmp_path, depth):
    weights = authors_resnet(depth)
    torch.save(dict(state_dict=weights, epoch=100), tmp_path / 'epoch_100.pth')
    out = tmp_path / 'resnet.pth'
    convert_authors_checkpoint(tmp_path / 'epoch_100.pth', out)
    written = torch.load(out, weights_only=True)
    assert written.keys() == {'state_dict'}
    PWSResNet(depth, base_channels=4).load_state_dict(written['state_dict'])  # strict

    net = PWSResNet(
        depth, base_channels=4, init_cfg=dict(type='Pretrained', checkpoint=str(out))
    )
    net.init_weights()
    net.double().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = net(x.double())
        theirs = authors_forward(weights, depth, x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('depth', BLOCKS)
def test_the_depth_follows_from_the_names(depth):
    official = from_official(authors_resnet(depth), 'IN')
    assert official.network == f'PWSResNet(depth={depth}, base_channels=4)'
    # The report mentions the ReLU after the stem where it changes the result.
    assert ('basic blocks' in official.report()) == (depth < 50)


def test_the_defaults_fit_the_network_of_full_width():
    official = from_official(authors_resnet(50, width=64), 'IN')
    assert official.network == 'PWSResNet(depth=50)'
    PWSResNet(50).load_state_dict(official.state_dict)


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'module.backbone.'])
def test_prefixes_do_not_matter(prefix):
    weights = authors_resnet(18)
    prefixed = {prefix + name: value for name, value in weights.items()}
    expected = from_official(weights, 'IN').state_dict
    torch.testing.assert_close(from_official(prefixed, 'IN').state_dict, expected)


def test_a_classifier_has_the_same_backbone():
    weights = authors_resnet(18)
    official = from_official(classifier_of(weights), 'IN')
    expected = from_official(weights, 'IN')
    torch.testing.assert_close(official.state_dict, expected.state_dict)
    assert official.dropped == ['neck.norm.weight', 'neck.norm.bias', 'head.fc.weight']


def test_a_detector_has_the_same_backbone():
    weights = authors_resnet(18)
    detector = {f'backbone.{name}': value for name, value in weights.items()}
    # Neck and heads may have PWS convolutions and norm layers.
    others = ['neck.lateral_convs.0.alpha', 'rpn_head.rpn_cls.weight']
    others += ['roi_head.bbox_head.bn.running_mean']
    detector.update({name: torch.ones(1) for name in others})
    official = from_official(detector, 'IN')
    torch.testing.assert_close(
        official.state_dict, from_official(weights, 'IN').state_dict
    )
    assert set(others) < set(official.dropped)


def test_the_program_lists_what_it_did(load_program, tmp_path, monkeypatch, capsys):
    torch.save(authors_resnet(50), tmp_path / 'in.pth')
    out = tmp_path / 'out.pth'
    monkeypatch.setattr(
        sys, 'argv', ['official_to_pws.py', str(tmp_path / 'in.pth'), str(out)]
    )
    load_program('tools/model_converters/official_to_pws.py').main()
    text = capsys.readouterr().out
    assert 'PWSResNet(depth=50, base_channels=4)' in text
    # 53 convolutions of three tensors and one norm layer of two
    assert re.search(r'mapped: +161 tensors: conv1 3, gn1 2, layer1 30', text)
    assert re.search(r'dropped: +8 tensors: gnoutputgn_0\.\*, .*_3\.\*$', text, re.M)
    assert 'basic blocks' not in text
    assert f'written: {out}' in text


def without(*names):
    return lambda w: [w.pop(name) for name in names]


def change(name, function):
    return lambda w: w.update({name: function(w[name])})


def each_alpha(function):
    return lambda w: w.update({k: function(w[k]) for k in w if k.endswith('alpha')})


def poison(w):
    w['layer1.0.conv1.weight'][0] = math.nan
    w['layer2.0.conv1.bias'][0] = math.inf


def make_bn(w):
    for key in [key for key in w if key.endswith('alpha')]:
        del w[key]
    w['bn1.running_mean'] = torch.zeros(4)


REFUSED = {
    'unknown': (
        lambda w: w.update({'layer1.0.bn1.weight': torch.ones(4)}),
        r'does not fit PWSResNet\(depth=18, .*\)\. 1 unknown: layer1\.0\.bn1\.weight$',
    ),
    'missing': (
        without('layer2.0.conv1.alpha', 'gn1.bias'),
        r'2 missing: gn1\.bias, layer2\.0\.conv1\.alpha$',
    ),
    'stem': (without('gn1.weight'), r'\(depth=18\)\. 1 missing: gn1\.weight$'),
    'twice': (
        lambda w: w.update({'backbone.conv1.bias': torch.zeros(4)}),
        r'has conv1\.bias twice: backbone\.conv1\.bias is the second one',
    ),
    'both stem norms': (
        lambda w: w.update({'norm1.bias': torch.zeros(4)}),
        r'has gn1\.bias twice: norm1\.bias is the second one',
    ),
    'depth': (
        lambda w: [w.pop(key) for key in list(w) if key.startswith('layer3.1.')],
        r'stages of \(2, 2, 1, 2\) basic blocks, but no .* 18, 34, 50, 101, 152',
    ),
    'kind of block': (
        lambda w: w.update({'layer1.0.conv3.alpha': torch.ones(4, 1, 1, 1)}),
        r'stages of \(2, 2, 2, 2\) bottlenecks',
    ),
    'axes of a filter': (
        change('layer1.0.conv1.weight', lambda v: v.flatten(1)),
        r'of another shape: layer1\.0\.conv1\.weight \(4, 36\) instead of '
        r'\(4, 4, 3, 3\)$',
    ),
    'axes of the stem': (
        change('conv1.weight', lambda v: v[0]),
        r'\. 1 of another shape: conv1\.weight \(3, 7, 7\) instead of',
    ),
    'CIFAR stem': (
        change('conv1.weight', lambda v: v[..., :3, :3]),
        r'conv1\.weight \(4, 3, 3, 3\) instead of \(4, 3, 7, 7\)$',
    ),
    'number of alphas': (
        change('conv1.alpha', lambda v: v[:1]),
        r'conv1\.alpha \(1, 1, 1, 1\) instead of \(4, 1, 1, 1\)$',
    ),
    'NaN': (poison, r'NaN or infinity in layer1\.0\.conv1\.weight, layer2\.0\.conv1'),
    'BN': (make_bn, 'pws-convert is for that'),
    'no alpha': (
        lambda w: [w.pop(key) for key in list(w) if key.endswith('alpha')],
        'is not of a PWS network',
    ),
    'our layout': (each_alpha(torch.flatten), 'in the layout of pws_mmdet already'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_weights_that_do_not_fit_are_refused(case):
    spoil, message = REFUSED[case]
    weights = authors_resnet(18)
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        from_official(weights, 'IN')


def test_our_own_weights_are_refused():
    with pytest.raises(ValueError, match='in the layout of pws_mmdet already'):
        from_official(PWSResNet(18, base_channels=4).state_dict(), 'IN')


class Code:
    def __reduce__(self):
        return print, ('run',)


@pytest.mark.parametrize(
    'content, out, message',
    [
        (None, 'out.pth', 'There is no checkpoint'),
        (b'', 'out.pth', 'not a readable checkpoint'),
        ('half', 'out.pth', 'not a readable checkpoint'),
        (Code(), 'out.pth', 'can run any code'),
        (dict(epoch=3), 'out.pth', 'holds no weights'),
        ({'w': torch.ones(1)}, 'out.pth', 'is not of a PWS network'),
        ('good', 'out', 'OUT must end in .pth'),
        ('good', 'mine.pth', 'mine.pth exists: move it away'),
    ],
    ids=['none', 'empty', 'truncated', 'code', 'no weights', 'other', 'suffix', 'OUT'],
)
def test_bad_files(tmp_path, content, out, message):
    path = tmp_path / 'in.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content in ('good', 'half'):
        torch.save(authors_resnet(18), path)
        if content == 'half':
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is not None:
        torch.save(content, path)
    (tmp_path / 'mine.pth').write_text('mine')
    before = sorted(tmp_path.iterdir())
    with pytest.raises((OSError, RuntimeError, ValueError), match=message):
        convert_authors_checkpoint(path, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'mine.pth').read_text() == 'mine'
