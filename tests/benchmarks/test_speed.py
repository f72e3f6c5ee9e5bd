"""Tests of benchmarks/speed.py."""

import re
import sys

import comparison
import pytest
import speed
import torch
from conftest import ROOT
from kinds import make_kinds
from mmcv.cnn import ConvWS2d
from networks import PARTS
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import DynamicTanh, NoNorm, ScaledWSConv2d
from pws_mmdet.utils.records import read_records

CPU = torch.device('cpu')
LAYER = 'conv 3x3, 64 channels, H/4'
MASK_RCNN = 'Mask R-CNN R-50-FPN'
RECORDS = sorted((ROOT / 'docs/benchmarks').glob('*.jsonl'))


@pytest.fixture
def main(monkeypatch):
    monkeypatch.setattr(comparison, 'MIN_ROUNDS', 1)

    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmarks/speed.py', *map(str, args)])
        speed.main()

    return run_main


def build(part, kind, size=32, inference=False):
    contender = PARTS[part].make(kind, make_kinds()[kind], 2, size, inference)
    contender.build(CPU, 2, False, 0, torch.contiguous_format)
    return contender


def test_all_kinds_side_by_side(main, tmp_path, capsys):
    out, page = tmp_path / 'speed.jsonl', tmp_path / 'page.md'
    page.write_text('Before.\n<!-- speed -->\nold\n<!-- /speed -->\nAfter.\n')
    small = ['--parts', LAYER, '--batch-sizes', 1, 2, '--image-sizes', 32]
    main(*small, '--floors', '--seconds', 1e-3, '--out', out, '--markdown', page)
    records = read_records(out)
    compared = [(r['inference'], r['batch_size']) for r in records]
    assert compared == [(False, 1), (False, 2), (True, 1), (True, 2)]
    kinds = set(records[-1]['kinds'])
    assert {'plain', 'PWS', 'BN', 'GN', 'IN', 'SN', 'WN', 'ConvWS'} <= kinds
    assert {'ConvWS and GN', 'ScaledWS', 'frozen BN', 'DyT'} <= kinds
    for record in records:  # nothing is fused in training
        fused = set() if record['inference'] else {'PWS, fused'}
        assert set(record['kinds']) == kinds - fused
        assert record['kinds']['plain']['time'] == 1
        assert not any('error' in row for row in record['kinds'].values())
    training = records[1]['kinds']
    plain, pws = training['plain'], training['PWS']
    assert plain['peak_mib'] < pws['peak_mib']
    assert pws['peak_mib'] <= plain['peak_mib'] + 3 * plain['weights_mib']

    text = page.read_text()
    assert text.startswith('Before.\n<!-- speed -->\n') and 'old' not in text
    assert '| | 1 x 32² | 2 x 32² |' in text
    main('--read', out)
    assert capsys.readouterr().out in text
    with pytest.raises(SystemExit):
        main(*small, '--out', out)
    assert 'speed.jsonl exists; name a new file' in capsys.readouterr().err


@pytest.mark.parametrize('path', RECORDS, ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_records(main, path, tmp_path):
    published = path.with_suffix('.md').read_text()
    page = tmp_path / 'page.md'
    page.write_text(published)
    main('--read', path, '--markdown', page)
    assert page.read_text() == published


def test_tables_of_the_summary_are_those_of_the_records(main, tmp_path):
    published = (ROOT / 'docs/benchmarks.md').read_text()
    page = tmp_path / 'page.md'
    page.write_text(published)
    tables = re.findall(r'^<!-- ([\w-]+): (.*) -->$', published, re.MULTILINE)
    for name, title in tables:
        records = ROOT / f'docs/benchmarks/{name}.jsonl'
        main('--read', records, '--table', title, '--markdown', page)
    assert 0 < len(tables) <= 4 and page.read_text() == published


def test_the_floor_is_a_copy_of_the_filters(main, tmp_path):
    out = tmp_path / 'speed.jsonl'
    main('--parts', '--floors', 'VGG-16-SSD320', '--seconds', 1e-3, '--out', out)
    (floor,) = read_records(out)
    assert floor['layers'] == 15 + 6 + 10  # backbone, neck, predictors
    assert floor['ms'] > 0 and floor['copy_ms'] > 0


def test_profiles_add_up_to_the_step(main, tmp_path, capsys):
    out = tmp_path / 'speed.jsonl'
    small = ['--batch-sizes', 1, '--image-sizes', 32, '--seconds', 1e-3]
    main('--parts', '--floors', '--profiles', LAYER, *small, '--out', out)
    (profile,) = read_records(out)
    for i, total in enumerate(profile['ms']):
        operators = sum(row['ms'][i] for row in profile['operators'])
        assert 0 < total == pytest.approx(operators, rel=1e-3)
    by_name = {row['operator']: row['ms'] for row in profile['operators']}
    plain, pws = by_name['aten::native_group_norm']
    assert plain == 0 < pws
    assert '| aten::native_group_norm | 0.0 | ' in capsys.readouterr().out


@pytest.mark.parametrize(
    'kind, conv_type, norm_type',
    [
        ('ScaledWS', ScaledWSConv2d, NoNorm),
        ('DyT', nn.Conv2d, DynamicTanh),
        ('ConvWS and GN', ConvWS2d, nn.GroupNorm),
    ],
)
def test_a_kind_has_its_layers(kind, conv_type, norm_type):
    model = build('ResNet-50', kind).model
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, norm_type)]
    assert {type(conv) for conv in convs} == {conv_type}
    assert len(convs) == len(norms) == 53


@pytest.mark.parametrize('inference', [False, True])
def test_frozen_bn_stays_as_it_is(inference):
    contender = build('ResNet-50', 'frozen BN', inference=inference)
    norms = [m for m in contender.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    contender.run()
    for norm in norms:
        assert not norm.training and norm.running_mean.abs().max() == 0
        assert not any(p.requires_grad for p in norm.parameters())
    assert contender.model.conv1.weight.requires_grad


@pytest.mark.parametrize('part', ['ResNet-50', 'VGG-16-SSD320', MASK_RCNN])
@pytest.mark.parametrize('kind', ['plain', 'PWS', 'BN', 'ConvWS and GN'])
def test_networks_differ_in_convolutions_and_norm_layers_only(part, kind):
    model = build(part, kind, inference=True).model
    others = (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    reference = build(part, 'plain', inference=True).model

    def rest(network):
        return [
            (name, type(module), sum(p.numel() for p in module.parameters(False)))
            for name, module in network.named_modules()
            if not isinstance(module, others) and 'NoNorm' not in type(module).__name__
        ]

    assert rest(model) == rest(reference)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == sum(isinstance(m, nn.Conv2d) for m in reference.modules())
    has_norm = any(isinstance(m, others[1:]) for m in model.modules())
    assert has_norm == (kind in ('BN', 'ConvWS and GN'))
    assert any(isinstance(m, PWSConv2d) for m in convs) == (kind == 'PWS')
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    'args, message',
    [
        (['--parts', 'ResNet-51'], "--parts has no 'ResNet-51'; there are: "),
        (['--kinds', 'XN'], "--kinds has no 'XN'; there are: "),
        (['--floors', 'RetinaNet'], "--floors has no 'RetinaNet'; there are: "),
        (['--profiles', 'RetinaNet'], "--profiles has no 'RetinaNet'; there are: "),
        (['--batch-sizes', '0'], '--batch-sizes: invalid positive int'),
        (['--seconds', 'nan'], '--seconds: invalid positive float'),
        (['--device', 'cpu', '--amp'], '--amp needs a GPU'),
        (['--read', 'missing.jsonl'], 'missing.jsonl'),
        (['--read', '{broken}'], 'broken.jsonl is no file of this program'),
        (['--parts', '--floors'], 'nothing to measure'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_bad_input(main, tmp_path, capsys, args, message):
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('{"results": 1}\n')
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(broken=broken) for arg in args))
    assert e.value.code == 2
    assert message in capsys.readouterr().err
