"""Tests of benchmarks/speed.py."""

import json
import sys

import pytest
import torch
from torch import nn

from pws_mmdet import PWSConv2d

CPU = torch.device('cpu')
LAYER = 'conv 3x3, 64 channels, H/4'
MASK_RCNN = 'Mask R-CNN R-50-FPN'


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('benchmarks/speed.py')


@pytest.fixture
def main(program, monkeypatch):
    monkeypatch.setattr(program, 'MIN_ROUNDS', 1)

    def run_main(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmarks/speed.py', *map(str, args)])
        program.main()

    return run_main


def build(program, part, kind, size=32, inference=False):
    contender = program.PARTS[part].make(
        kind, program.make_kinds()[kind], 2, size, inference
    )
    contender.build(CPU, 2, False, 0, torch.contiguous_format)
    return contender


def test_all_kinds_side_by_side(main, tmp_path, capsys):
    out, page = tmp_path / 'speed.json', tmp_path / 'page.md'
    page.write_text('Before.\n<!-- speed -->\nold\n<!-- /speed -->\nAfter.\n')
    small = ['--parts', LAYER, '--batch-sizes', 1, 2, '--image-sizes', 32]
    main(*small, '--floors', '--seconds', 1e-3, '--out', out, '--markdown', page)
    report = json.loads(out.read_text())
    rows = report['results']
    kinds = {row['kind'] for row in rows}
    assert {'plain', 'PWS', 'BN', 'GN', 'IN', 'SN', 'WN', 'ConvWS'} <= kinds
    assert len(rows) == 2 * 2 * len(kinds) - 2  # nothing is fused in training
    assert not any(row['error'] for row in rows)
    assert all(row['time'] == 1 for row in rows if row['kind'] == 'plain')
    training = {row['kind']: row for row in rows if not row['inference']}
    plain, pws = training['plain'], training['PWS']
    assert plain['peak_mib'] < pws['peak_mib']
    assert pws['peak_mib'] <= plain['peak_mib'] + 3 * plain['weights_mib']

    text = page.read_text()
    assert text.startswith('Before.\n<!-- speed -->\n') and 'old' not in text
    assert '| | 1 x 32² | 2 x 32² |' in text
    main('--read', out)
    assert capsys.readouterr().out in text


def test_published_tables_are_those_of_the_measurements(main, root, tmp_path):
    page = tmp_path / 'page.md'
    published = (root / 'docs/benchmarks.md').read_text()
    page.write_text(published)
    reports = sorted(root.glob('docs/benchmarks/*.json'))
    for report in reports:
        main('--read', report, '--markdown', page)
    assert reports and page.read_text() == published


def test_the_floor_is_a_copy_of_the_filters(main, tmp_path):
    out = tmp_path / 'speed.json'
    main('--parts', '--floors', 'VGG-16-SSD320', '--seconds', 1e-3, '--out', out)
    (floor,) = json.loads(out.read_text())['floors']
    assert floor['layers'] == 15 + 6 + 10  # backbone, neck, predictors
    assert floor['ms'] > 0 and floor['copy_ms'] > 0


def test_profiles_add_up_to_the_step(main, tmp_path, capsys):
    out = tmp_path / 'speed.json'
    small = ['--batch-sizes', 1, '--image-sizes', 32, '--seconds', 1e-3]
    main('--parts', '--floors', '--profiles', LAYER, *small, '--out', out)
    (profile,) = json.loads(out.read_text())['profiles']
    for i, total in enumerate(profile['ms']):
        operators = sum(row['ms'][i] for row in profile['operators'])
        assert 0 < total == pytest.approx(operators, rel=1e-3)
    by_name = {row['operator']: row['ms'] for row in profile['operators']}
    plain, pws = by_name['aten::native_group_norm']
    assert plain == 0 < pws
    assert '| aten::native_group_norm | 0.0 | ' in capsys.readouterr().out


@pytest.mark.parametrize('part', ['ResNet-50', 'VGG-16-SSD320', MASK_RCNN])
@pytest.mark.parametrize('kind', ['plain', 'PWS', 'BN', 'ConvWS and GN'])
def test_networks_differ_in_convolutions_and_norm_layers_only(program, part, kind):
    model = build(program, part, kind, inference=True).model
    others = (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    reference = build(program, part, 'plain', inference=True).model

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
        (['--read', 'missing.json'], 'missing.json'),
        (['--read', '{broken}'], 'broken.json is no file of this program'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_bad_input(main, tmp_path, capsys, args, message):
    broken = tmp_path / 'broken.json'
    broken.write_text('{"results": 1}')
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(broken=broken) for arg in args))
    assert e.value.code == 2
    assert message in capsys.readouterr().err
