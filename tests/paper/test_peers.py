"""The rows of what a user would take instead of PWS: what their options make."""

import functools
from argparse import ArgumentParser

import pytest
import torch
from conftest import load_config
from grid import Table
from mmcv.cnn import ConvWS2d
from mmengine.config import DictAction
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.engine import AGCOptimWrapper
from pws_mmdet.layers import DynamicTanh, NoNorm, ScaledWSConv2d

NORMS = (_BatchNorm, nn.GroupNorm, DynamicTanh)
# Of each row, the class of its convolutions and that of its norm layers
KINDS = {
    'normal-clip': (nn.Conv2d, None),
    'normal-agc': (nn.Conv2d, None),
    'convws-gn': (ConvWS2d, nn.GroupNorm),
    'nf': (ScaledWSConv2d, None),
    'pws-gamma1e-6': (PWSConv2d, None),
    'pws-gamma1e-6-agc': (PWSConv2d, None),
    'dyt': (nn.Conv2d, DynamicTanh),
}
AGC = ('normal-agc', 'nf', 'pws-gamma1e-6-agc')
TABLES = {'table1': 'b2', 'table4': 'residual-lr1e-1', 'table4 plain': 'plain-lr5e-2'}
CASES = [(table, row) for table in TABLES for row in KINDS]


def config_of(run):
    """The config of a run, with its options read as tools/train.py reads them."""
    cfg = load_config(run.config)
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    start = run.arguments().index('--cfg-options')
    cfg.merge_from_dict(vars(parser.parse_args(run.arguments()[start:]))['cfg_options'])
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return cfg


def run_of(table, scale, cell):
    name = table.split()[0]
    if name == 'table4':
        pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    (run,) = Table(name, scale).runs([cell])
    return run


@functools.cache
def made(table, row):
    """The model and the optimizer of a row at the small scale."""
    cfg = config_of(run_of(table, 'mini', f'{row}-{TABLES[table]}'))
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with wrapper.optim_context(model):  # where AGC looks for the names in exclude
        pass
    return model, wrapper


def layers_of(model, *classes):
    """The layers of a model, without SSD's predictors."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, classes) and not name.startswith('bbox_head')
    }


@pytest.mark.parametrize('table, row', CASES)
def test_a_row_has_its_layers(table, row):
    model, _ = made(table, row)
    convs = layers_of(model, nn.Conv2d)
    conv_type, norm_type = KINDS[row]
    assert {type(conv) for conv in convs.values()} == {conv_type}
    norms = layers_of(model, *NORMS).values()
    assert len(norms) == (len(convs) if norm_type else 0)
    assert all(isinstance(norm, norm_type) for norm in norms)
    if conv_type is PWSConv2d:
        assert {conv.gamma for conv in convs.values()} == {1e-6}
    # Where nothing normalizes, each convolution has a bias, its own or a layer's.
    biases = [c for c in convs.values() if c.bias is not None]
    biases += [m for m in layers_of(model, NoNorm).values() if m.bias is not None]
    assert len(biases) == (0 if norm_type else len(convs))


@pytest.mark.parametrize('table, row', CASES)
def test_a_row_clips_as_it_says(table, row):
    model, wrapper = made(table, row)
    if row not in AGC:
        assert type(wrapper) is OptimWrapper
        clip_grad = dict(max_norm=35) if row == 'normal-clip' else None
        assert wrapper.clip_grad_kwargs == clip_grad
        return
    assert type(wrapper) is AGCOptimWrapper
    assert wrapper.agc == dict(clipping=0.08)
    last = 'bbox_head.' if table == 'table1' else 'head.'
    assert list(wrapper.exclude) == [last]
    names = [name for name, _ in model.named_parameters()]
    left_out = [name for name in names if last in name]
    assert left_out == [name for name in names if name.startswith(last)] != []


@pytest.mark.parametrize('table', TABLES)
def test_gains_and_biases_of_nf_do_not_decay(table):
    model, wrapper = made(table, 'nf')
    decay = {
        p: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    kinds = {name.split('.')[-1]: set() for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        kinds[name.split('.')[-1]].add(decay[p])
    residual = dict(skip_gain={0}) if table == 'table4' else {}
    assert kinds == dict(weight={5e-4}, bias={0}, gain={0}, **residual)


@pytest.mark.parametrize('table', ['table4', 'resnet34'])
def test_networks_for_cifar10_on_a_cpu(table):
    """They fit together, and all rows of a column have the same channels."""
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    shapes = {}
    for run in Table(table, 'cifar').runs(['*-lr1e-1'] if table == 'table4' else None):
        with torch.device('meta'):
            model = MODELS.build(config_of(run).model)
            scores = model(torch.empty(2, 3, 32, 32), mode='tensor')
        assert scores.shape == (2, 10)
        norms = layers_of(model, nn.GroupNorm).values()
        assert all(norm.num_channels >= 2 * norm.num_groups for norm in norms)
        convs = layers_of(model, nn.Conv2d).values()
        shapes.setdefault(run.column, set()).add(tuple(c.weight.shape for c in convs))
    sizes = [(len(convs), convs[-1][0]) for (convs,) in shapes.values()]
    assert sizes == ([(21, 64), (8, 96)] if table == 'table4' else [(36, 128)])


def test_frozen_bn_is_frozen():
    """In the backbone alone, as usual."""
    model = MODELS.build(config_of(run_of('table3', 'mini', 'frozen-bn')).model)
    model.train()
    norms = layers_of(model, *NORMS)
    assert norms and all(name.startswith('backbone.') for name in norms)
    for norm in norms.values():
        assert isinstance(norm, _BatchNorm) and not norm.training
        assert not any(p.requires_grad for p in norm.parameters())
    convs = layers_of(model, nn.Conv2d)
    assert all(
        (conv.bias is None) == name.startswith('backbone.')
        for name, conv in convs.items()
        if 'rpn' not in name
    )


@pytest.mark.parametrize('scale', ['mini', 'full'])
def test_conv_ws_and_gn_are_in_all_parts(scale):
    cfg = config_of(run_of('table3', scale, 'convws-gn'))
    cfg.model.backbone.init_cfg = None  # there are no weights in the tests
    model = MODELS.build(cfg.model)
    for part in (model.backbone, model.neck, model.roi_head.mask_head.convs):
        convs = layers_of(part, nn.Conv2d)
        norms = layers_of(part, *NORMS)
        assert {type(conv) for conv in convs.values()} == {ConvWS2d}
        assert {type(norm) for norm in norms.values()} == {nn.GroupNorm}
        assert len(convs) == len(norms)


def test_sync_bn_is_trained_in_all_parts():
    cfg = config_of(run_of('table3', 'full', 'syncbn'))
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    for part in (model.backbone, model.neck, model.roi_head.mask_head):
        part.train()
        norms = layers_of(part, *NORMS).values()
        assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    # The stem and the first stage are frozen, as in the other rows.
    frozen = [
        n for n in layers_of(model.backbone, _BatchNorm).values() if not n.training
    ]
    assert len(frozen) == 1 + 3 * 3 + 1


def test_names_tell_which_bn_is_meant():
    labels = {
        scale: {
            row: spec['label'][1] for row, spec in Table('table3', scale).rows.items()
        }
        for scale in ('full', 'mini')
    }
    assert labels['full']['bn'] == 'frozen BN'
    assert labels['mini']['bn'] == 'BN'
    assert labels['mini']['frozen-bn'] == 'frozen BN, not pretrained'
    assert 'syncbn' in labels['full'] and 'syncbn' not in labels['mini']
