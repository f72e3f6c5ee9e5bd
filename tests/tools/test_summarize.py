"""Tests of tools/analysis_tools/summarize.py."""

import json
import sys

import pytest
import torch
from conftest import load_config
from mmengine.model import BaseModule
from mmengine.registry import MODELS

from pws_mmdet.analysis import Composition, summarize_config

SSD = 'configs/mini/ssd96_vgg16_{}_digits.py'
MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_pws_digits.py'
FIND_IMAGE_SIZE = 'pws_mmdet.analysis.model_summary.find_image_size'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/analysis_tools/summarize.py')


@pytest.fixture
def main(program, root, monkeypatch, capsys):
    """Run the program in the repository, and return what it prints."""

    def run_main(*args):
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, 'argv', ['summarize.py', *map(str, args)])
        program.main()
        return capsys.readouterr().out

    return run_main


@pytest.fixture
def no_weights(monkeypatch):
    """Fail if weights are initialized or loaded."""

    def fail(*_, **__):
        raise AssertionError('weights were initialized or loaded')

    monkeypatch.setattr(BaseModule, 'init_weights', fail)
    monkeypatch.setattr(torch, 'load', fail)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fail)


def row(report, kind):
    return next(r for r in report['kinds'] if r['kind'] == kind)


def test_a_norm_free_detector_beside_its_control(main, tmp_path):
    reports = {}
    for norm in ('pws', 'bn'):
        path = tmp_path / f'{norm}.json'
        out = main(SSD.format(norm), '--json', path)
        reports[norm] = report = json.loads(path.read_text())
        assert out.splitlines()[-len(report['findings']) :] == report['findings']
        model = MODELS.build(load_config(SSD.format(norm)).model)
        parameters = sum(p.numel() for p in model.parameters())
        assert row(report, 'total')['parameters'] == parameters
        assert report['findings'][-1].endswith('a random image of 96 x 96 pixels')

    pws, bn = reports['pws'], reports['bn']
    assert pws['findings'][0] == 'Norm-free: no layer normalizes outputs'
    assert pws['findings'][1] == 'gamma: 0.001 in backbone, neck, bbox_head'
    assert pws['decayed_alphas'] == []
    assert pws['trained_alphas'] == pws['alphas'] > 0
    convs = row(pws, 'PWS convolutions')
    assert convs['layers'] == row(pws, 'total')['layers']

    assert bn['findings'][0].startswith('NOT norm-free: ')
    # The MACs are equal: the computation of filters does not count.
    assert row(bn, 'plain convolutions')['macs'] == convs['macs'] > 0
    assert row(bn, 'plain convolutions')['layers'] == convs['layers']


def test_a_detector_of_two_stages(main, no_weights):
    out = main(MASK_RCNN, '--shape', 64, 64)
    assert 'Norm-free: no layer normalizes outputs' in out
    assert 'a random image of 64 x 64 pixels' in out
    macs = {}
    for layer in summarize_config(MASK_RCNN, shape=(64, 64)).layers:
        macs[layer.name] = layer.macs
    assert macs['backbone.conv1'] == 32 * 32 * (32 * 3 * 7 * 7)
    # The RPN sees the levels of the FPN, from 16 x 16 cells on.
    cells = 16**2 + 8**2 + 4**2 + 2**2 + 1
    assert macs['rpn_head.rpn_cls'] == cells * 64 * 3
    # The second stage sees some RoIs.
    assert macs['roi_head.bbox_head.fc_cls'] % (256 * 11) == 0
    assert macs['roi_head.bbox_head.fc_cls'] > 0
    assert macs['roi_head.mask_head.convs.0.conv'] > 0


def test_alphas_that_a_config_decays_are_listed():
    options = {'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor'}
    composition = summarize_config(MASK_RCNN, options, macs=False)
    names = {layer.name for layer in composition.layers if layer.type == 'PWSConv2d'}
    assert composition.decayed_alphas
    assert {f'{name}.alpha' for name in names} == {*composition.decayed_alphas}


def test_a_config_of_mmdetection(no_weights):
    composition = summarize_config(RETINANET, shape=(64, 64))
    layers = {layer.name: layer for layer in composition.layers}
    norms = [layer for layer in composition.layers if layer.type == 'BatchNorm2d']
    assert len(norms) == 53
    assert composition.findings[0].startswith(
        f'NOT norm-free: 53 of {len(layers)} layers normalize outputs: backbone.bn1, '
    )
    # norm_eval takes effect only in training mode.
    assert composition.findings[1].endswith(': 53 of these')
    frozen = [name for name, layer in layers.items() if layer.frozen]
    assert len(frozen) == 22  # the stem and layer1, 11 convolutions with BN
    assert all(n.split('.')[1] in ('conv1', 'bn1', 'layer1') for n in frozen)
    # The head is applied to five levels.
    cells = 8**2 + 4**2 + 2**2 + 1 + 1
    assert layers['bbox_head.retina_cls'].macs == cells * 256 * 9 * (9 * 80)
    assert layers['bbox_head.cls_convs.0.conv'].macs == cells * 256 * 9 * 256
    assert composition.decayed_alphas == []


def test_without_a_forward_pass(main, monkeypatch):
    monkeypatch.setattr(FIND_IMAGE_SIZE, None)
    out = main(SSD.format('pws'), '--no-macs')
    assert 'MACs' not in out
    assert 'PWS convolutions' in out


def test_a_model_whose_forward_pass_fails_is_described(main, monkeypatch):
    monkeypatch.setattr(FIND_IMAGE_SIZE, lambda cfg: (8, 8))
    out = main('mmdet::ssd/ssd300_coco.py')
    assert 'layers that normalize' in out  # L2Norm
    assert 'MACs: no forward pass of a random image of 8 x 8 pixels: Runt' in out


def test_mixed_precision_needs_no_gpu():
    options = {'optim_wrapper.type': 'AmpOptimWrapper'}
    options['optim_wrapper.loss_scale'] = 'dynamic'
    composition = summarize_config(SSD.format('pws'), options, macs=False)
    assert isinstance(composition, Composition)
    assert composition.decayed_alphas == []


def test_an_installed_config_with_a_plus_is_read_by_its_path(main, capsys):
    with pytest.raises(SystemExit):
        main('mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py')
    error = ' '.join(capsys.readouterr().err.split())
    path = error.split('Give the path, ')[1]
    composition = summarize_config(path, macs=False)
    assert 'ConvWS2d' in {layer.type for layer in composition.layers}


@pytest.mark.parametrize(
    'args, message',
    [
        ([], 'required: config'),
        (['missing.py'], 'missing.py cannot be read: FileNotFoundError'),
        (['mmdet::missing/a.py'], 'mmdet::missing/a.py cannot be read: FileNotFound'),
        (['{tmp}/empty.py'], 'empty.py describes no model'),
        (['{tmp}/wrong.py'], 'wrong.py cannot be read: SyntaxError'),
        (['{tmp}/imports.py'], 'imports.py cannot be read: ImportError'),
        (['{tmp}/type.py', '--no-macs'], "cannot be built: KeyError: 'Mine is not in"),
        (['{tmp}/type.py'], 'give --shape or --no-macs'),
        (['{ssd}', '--shape', '0', '8'], '--shape: invalid positive int'),
        (['{ssd}', '--no-macs', '--json', '{tmp}'], 'Is a directory'),
        (
            ['{ssd}', '--cfg-options', 'model.neck=dict(type=FPN,gamma=1)'],
            "takes no dict, but KEY.a=1 KEY.b=2 ..., got 'model.neck=dict(type=FPN,",
        ),
        (
            ['mmdet::ssd/ssd300_coco.py', '--shape', '8', '8'],
            'no forward pass of a random image of 8 x 8 pixels: RuntimeError',
        ),
        (
            ['{ssd}', '--cfg-options', 'optim_wrapper.optimizer.type=Mine'],
            'cannot be built',
        ),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_wrong_arguments_and_configs_are_errors(main, tmp_path, capsys, args, message):
    configs = dict(
        empty='a = 1',
        wrong='model = dict(',
        imports="custom_imports = dict(imports=['nowhere'])\nmodel = dict()",
        type="model = dict(type='Mine')",
    )
    for name, text in configs.items():
        (tmp_path / f'{name}.py').write_text(f'{text}\n')
    names = dict(tmp=tmp_path, ssd=SSD.format('pws'))
    with pytest.raises(SystemExit) as e:
        main(*(arg.format(**names) for arg in args))
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('error:') == 1
