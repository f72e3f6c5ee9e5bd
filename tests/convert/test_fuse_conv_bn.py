"""Tests of the patch: functions of other libraries fold BN correctly, or refuse."""

import copy
from importlib import import_module

import pytest
import torch
from conftest import load_config
from mmcv.cnn import ConvAWS2d, ConvModule, fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.utils.benchmark import InferenceBenchmark
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental.optimization import fuse

from pws_mmdet import PWSConv2d, patch_fuse_conv_bn
from pws_mmdet.convert.fuse_conv_bn import EVALUATE, FUSE
from pws_mmdet.layers import ReparamConv2d

CONVS = {
    'PWS': dict(type='PWS'),
    'one alpha': dict(type='PWS', alpha='layer'),
    'no beta': dict(type='PWS', beta=False),
    'WN': dict(type='WN', g='trained'),
    'ConvWS': dict(type='ConvWS'),
    'ConvAWS': dict(type='ConvAWS'),
    'plain': None,
}


@pytest.fixture(autouse=True)
def patched():
    with patch_fuse_conv_bn() as patch:
        yield patch


def test_the_patch_can_be_undone(patched):
    def current():
        return [getattr(import_module(m), name) for m, name in FUSE + EVALUATE]

    ours = current()
    with patch_fuse_conv_bn():  # a second time
        assert current() == ours
    assert current() == ours
    patched.undo()
    assert current() == [function.__wrapped__ for function in ours]
    handle = patch_fuse_conv_bn()
    assert current() != [function.__wrapped__ for function in ours]
    handle.undo()
    assert current() == [function.__wrapped__ for function in ours]


@pytest.mark.parametrize('kind', ['PWS', 'one alpha', 'no beta', 'WN'])
def test_deployed_layers_need_no_patch(kind, x, patched):
    """After switch_to_deploy(), as in MMYOLO, ``weight`` holds the filters."""
    patched.undo()
    cfg = CONVS[kind]
    block = randomize(ConvModule(3, 6, 3, conv_cfg=cfg, norm_cfg=dict(type='BN')))
    expected = block(x)
    assert not torch.allclose(fuse_conv_bn(copy.deepcopy(block))(x), expected, rtol=0.1)
    block.conv.switch_to_deploy()
    torch.testing.assert_close(block(x), expected)
    fused = fuse_conv_bn(copy.deepcopy(block))
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)


def randomize(module):
    """Change all parameters and statistics, so that each has an effect."""
    for p in module.parameters():
        nn.init.normal_(p, 1.0, 0.3)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
        if isinstance(m, ConvAWS2d):
            nn.init.uniform_(m.weight_gamma, 0.5, 2.0)
            nn.init.normal_(m.weight_beta)
    return module.eval()


@pytest.fixture(params=CONVS)
def block(request):
    cfg = CONVS[request.param]
    return randomize(ConvModule(3, 6, 3, conv_cfg=cfg, norm_cfg=dict(type='BN')))


@pytest.fixture
def sequence():
    return randomize(nn.Sequential(PWSConv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def test_mmcv_fuses(block, x):
    expected = block(x)
    fused = fuse_conv_bn(copy.deepcopy(block))
    assert type(fused.conv) is nn.Conv2d and type(fused.bn) is nn.Identity
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('module', ['torch.nn.utils', 'torch.nn.utils.fusion'])
def test_torch_fuses(block, x, module):
    expected = block(x)
    fused = import_module(module).fuse_conv_bn_eval(block.conv, block.bn)
    assert type(fused) is nn.Conv2d
    torch.testing.assert_close(fused(x).relu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block(x), expected)


def gradients(module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {'x': x.grad, **{n: p.grad.clone() for n, p in module.named_parameters()}}


def test_efficient_evaluation_of_mmcv(block, x, monkeypatch):
    """Gradients of W, alpha and beta are right, too, as if BN is frozen in training."""
    expected = block(x), gradients(block, x)
    block.turn_on_efficient_conv_bn_eval()
    monkeypatch.setattr(block.bn, 'forward', None)  # it is not called
    torch.testing.assert_close(block(x), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(block, x), expected[1], rtol=1e-4, atol=1e-4)


def test_efficient_evaluation_of_mmcv_is_off_in_training(block, x):
    twin = copy.deepcopy(block).train()
    block.turn_on_efficient_conv_bn_eval()
    torch.testing.assert_close(block.train()(x), twin(x))


@pytest.mark.parametrize('training', [True, False])
def test_efficient_evaluation_of_mmengine(block, x, training):
    module = import_module('mmengine.model.efficient_conv_bn_eval')
    block.train(training)
    twin = copy.deepcopy(block)
    y = module.efficient_conv_bn_eval_control(block.bn, block.conv, x).relu()
    torch.testing.assert_close(y, twin(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', CONVS)
@pytest.mark.parametrize('training', [True, False])
def test_efficient_evaluation_of_mmengine_in_a_traced_network(kind, training, x):
    conv = ConvModule(3, 6, 3, conv_cfg=CONVS[kind]).conv
    model = nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU()))
    randomize(model).train(training)
    expected = copy.deepcopy(model)(x)
    turn_on_efficient_conv_bn_eval(model, '0')
    calls = []
    model[0][1].register_forward_hook(lambda *args: calls.append(1))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == training


def test_a_subclass_that_computes_something_else_is_refused(x):
    block = ConvModule(3, 6, 3, conv_cfg=dict(type='SAC'), norm_cfg=dict(type='BN'))
    with pytest.raises(TypeError, match='cannot be folded into a SAConv2d'):
        fuse_conv_bn(block)

    class Doubled(PWSConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    block.conv = Doubled(3, 6, 3)
    with pytest.raises(TypeError, match='Doubled with a forward of its own is no'):
        fuse_conv_bn(block)


@pytest.mark.parametrize('layers', [['0', '1'], ['0', '1', '2']])
@pytest.mark.parametrize('function', [fuse_modules, fuse_modules_qat])
def test_quantization_refuses(sequence, layers, function):
    sequence.train(function is fuse_modules_qat)
    with pytest.raises(AssertionError, match='fuser method for.*PWSConv2d'):
        function(sequence, layers)


@pytest.mark.parametrize('function', [fuse, fuse_fx])
def test_networks_that_fx_fuses_compute_the_same(sequence, x, function):
    expected = sequence(x)
    fused = function(sequence)
    assert any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('module_name, name', FUSE + EVALUATE)
def test_plain_convolutions_give_the_same_as_without_the_patch(module_name, name, x):
    function = getattr(import_module(module_name), name)
    conv, bn = randomize(nn.Conv2d(3, 6, 3)), randomize(nn.BatchNorm2d(6))
    args = (bn, conv, x) if (module_name, name) in EVALUATE else (conv, bn)
    ours, theirs = (f(*copy.deepcopy(args)) for f in (function, function.__wrapped__))
    if isinstance(ours, nn.Module):
        assert type(ours) is type(theirs) is nn.Conv2d
        ours, theirs = ours.state_dict(), theirs.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_arguments_by_name(sequence, x):
    fused = torch.nn.utils.fuse_conv_bn_eval(bn=sequence[1], conv=sequence[0])
    torch.testing.assert_close(fused(x).relu(), sequence(x), rtol=1e-5, atol=1e-5)


def test_mmdetections_benchmark(monkeypatch, tmp_path):
    """This is what ``benchmark.py --fuse-conv-bn`` calls. It needs no GPU here."""
    cfg = load_config('configs/mini/ssd96_r18_pws_digits.py')
    for part in (cfg.model.backbone, cfg.model.neck):
        part.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model)
    for layer in model.modules():
        if isinstance(layer, (ReparamConv2d, nn.BatchNorm2d)):
            randomize(layer)
    model.eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')

    monkeypatch.setattr(nn.Module, 'cuda', lambda self, *args: self)
    benchmark = InferenceBenchmark.__new__(InferenceBenchmark)
    benchmark.cfg, benchmark.distributed = cfg, False
    fused = benchmark._init_model(str(tmp_path / 'weights.pth'), is_fuse_conv_bn=True)
    for part in ('backbone', 'neck'):
        layers = list(fused.get_submodule(part).modules())
        assert not any(isinstance(m, nn.BatchNorm2d) for m in layers)
        assert any(type(m) is nn.Conv2d for m in layers)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for ours, theirs in zip(
            fused.extract_feat(images), model.extract_feat(images), strict=True
        ):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
