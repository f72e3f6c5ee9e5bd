"""Tests of fusing PWS convolutions into plain ones."""

import copy
import functools
import gc
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import load_config
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models import RetinaHead, TOODHead
from mmdet.testing import demo_mm_inputs
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.structures import InstanceData
from test_configs import CONFIGS, build, halve, num_classes
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pws_mmdet import PWSConv2d, fuse_pws, standardize_weight
from pws_mmdet.convert import load_bn_weights, to_conv2d
from pws_mmdet.layers import ReparamConv2d, WNConv2d, bias_conv2d
from pws_mmdet.models import PWSResNet

REPARAMETRIZED = [
    name
    for name in CONFIGS
    if ('pws' in name or '_wn_' in name)
    and not name.endswith(('_2x.py', '_demo.py'))  # the same networks
]


def randomize(module):
    """Change all parameters from their initial values, so that each has an effect."""
    for layer in module.modules():
        if isinstance(layer, ReparamConv2d):
            for name, p in layer.named_parameters(recurse=False):
                if name == 'bias':
                    nn.init.normal_(p, std=0.2)
                elif name != 'weight':
                    nn.init.uniform_(p, 0.5, 1.5)
    return module.eval()


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def flatten(outputs):
    """Return all tensors in the nested outputs of a network."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for part in outputs for t in flatten(part)]


def check_close(fused, expected, tolerance=1e-5):
    """Check that outputs are equal up to a fraction of their largest values."""
    pairs = list(zip(flatten(fused), flatten(expected), strict=True))
    assert pairs
    for ours, theirs in pairs:
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= tolerance, error.item()


def net():
    return nn.Sequential(
        PWSConv2d(3, 4, 3),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), WNConv2d(4, 4, 3, g='trained')),
        nn.Conv2d(4, 2, 1),
    )


@given(
    layer=st.sampled_from([PWSConv2d, WNConv2d]),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (2, 1), 'same', 'valid']),
    dilation=st.integers(1, 2),
    padding_mode=st.sampled_from(['zeros', 'reflect', 'replicate', 'circular']),
    beta=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    alpha=st.sampled_from(['channel', 'layer', 'fixed']),
    scale=st.booleans(),
    relative_gamma=st.booleans(),
    g=st.sampled_from(['fixed', 'trained']),
)
@settings(deadline=None, max_examples=100)
def test_a_fused_layer_computes_the_same(
    layer, groups, channels, kernel_size, stride, padding, **kwargs
):
    if math.prod(kernel_size) * channels[0] < 2:
        return
    if padding == 'same':
        stride = 1
    names = ('alpha', 'scale', 'relative_gamma')
    for name in ('g',) if layer is PWSConv2d else names:
        del kwargs[name]
    conv = layer(
        channels[0] * groups,
        channels[1] * groups,
        kernel_size,
        stride,
        padding,
        groups=groups,
        **kwargs,
    )
    randomize(conv)
    plain = fuse_pws(conv)
    assert type(plain) is nn.Conv2d
    for name in nn.Conv2d.__constants__:
        assert getattr(plain, name) == getattr(conv, name), name
    assert plain.weight.dtype == conv.weight.dtype
    assert (plain.bias is None) == (conv.bias is None)
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=conv.weight.dtype)
    assert torch.equal(plain(x), conv(x))


@pytest.mark.parametrize('inplace', [True, False])
def test_every_layer_is_replaced(inplace):
    model = randomize(net())
    before = copy.deepcopy(model)
    fused = fuse_pws(model, inplace=inplace)
    assert (fused is model) == inplace
    assert {type(m) for m in convolutions(fused)} == {nn.Conv2d}
    x = torch.randn(2, 3, 9, 9)
    check_close(fused(x), before(x))
    if not inplace:
        assert repr(model) == repr(before)
        for p, q in zip(model.parameters(), before.parameters(), strict=True):
            assert torch.equal(p, q)
        memory = {p.untyped_storage().data_ptr() for p in model.parameters()}
        fused_memory = {p.untyped_storage().data_ptr() for p in fused.parameters()}
        assert not memory & fused_memory


@pytest.mark.parametrize('alpha', ['channel', 'layer', 'fixed'])
@pytest.mark.parametrize('beta', [True, False])
def test_the_plain_layer_shares_no_memory(alpha, beta):
    conv = randomize(PWSConv2d(3, 4, 3, alpha=alpha, beta=beta))
    plain = to_conv2d(conv)
    x = torch.randn(1, 3, 5, 5)
    before = plain(x)
    with torch.no_grad():
        for p in conv.parameters():
            p.add_(torch.randn_like(p))
    assert torch.equal(plain(x), before)


def test_one_beta_per_layer_becomes_one_bias_per_channel():
    conv = randomize(PWSConv2d(3, 4, 3, alpha='layer'))
    plain = to_conv2d(conv)
    assert plain.bias.shape == (4,) and plain.bias.is_contiguous()
    with torch.no_grad():
        plain.bias[0] += 1  # not a view of beta: other channels stay
    assert torch.equal(plain.bias[1:], conv.bias.expand(3))


@pytest.mark.parametrize(
    'frozen, weight, bias',
    [
        ([], True, True),
        (['weight'], True, True),
        (['alpha'], True, True),
        (['weight', 'alpha'], False, True),
        (['bias'], True, False),
        (['weight', 'alpha', 'bias'], False, False),
    ],
)
def test_frozen_parameters_stay_frozen(frozen, weight, bias):
    conv = PWSConv2d(3, 4, 3)
    for name in frozen:
        getattr(conv, name).requires_grad_(False)
    plain = fuse_pws(conv)
    assert (plain.weight.requires_grad, plain.bias.requires_grad) == (weight, bias)
    assert plain.weight.is_leaf and plain.bias.is_leaf


def test_a_fused_network_can_be_trained():
    fused = fuse_pws(net().train())
    fused(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


@pytest.mark.parametrize(
    'reparametrize',
    [
        parametrizations.weight_norm,
        lambda conv: parametrize.register_parametrization(conv, 'alpha', nn.Softplus()),
        lambda conv: prune.random_unstructured(conv, 'weight', 0.5),
        lambda conv: prune.random_unstructured(conv, 'bias', 0.5),
        nn.utils.weight_norm,
    ],
    ids=['weight_norm', 'softplus', 'pruned weight', 'pruned bias', 'old weight_norm'],
)
@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_pruned_and_parametrized_parameters(reparametrize, inplace):
    """The filters are those of the current parameters, not of the last forward."""
    model = nn.Sequential(PWSConv2d(3, 4, 3))
    conv = reparametrize(model[0]) or model[0]
    x = torch.randn(2, 3, 9, 9)
    before = model(x)
    for name, p in model.named_parameters():
        nn.init.normal_(p)
        p.requires_grad_('bias' not in name)
    fused = fuse_pws(model, inplace)
    assert type(fused[0]) is nn.Conv2d
    assert fused[0].weight.requires_grad and not fused[0].bias.requires_grad
    y = conv(x)
    plain = standardize_weight(conv.weight, conv.alpha, conv.gamma)
    torch.testing.assert_close(y, F.conv2d(x, plain, conv.bias))
    torch.testing.assert_close(fused(x), y)
    assert not torch.allclose(y, before)


class Doubled(PWSConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def back(module, gradients_in, gradients_out):
    return None


@pytest.mark.parametrize(
    'change, reason',
    [
        (lambda conv: setattr(conv, '__class__', Doubled), 'a forward of its own'),
        (
            lambda conv: setattr(conv, 'forward', PWSConv2d(3, 4, 3).forward),
            'a forward of its own',
        ),
        (lambda conv: conv.register_forward_hook(back), 'a forward hook'),
        (lambda conv: conv.register_forward_pre_hook(back), 'a forward hook'),
        (lambda conv: conv.register_full_backward_hook(back), 'a backward hook'),
    ],
)
@pytest.mark.parametrize('inplace', [True, False])
def test_a_layer_with_a_forward_or_hooks_of_its_own_is_refused_or_left(
    change, reason, inplace
):
    model = randomize(net())
    change(model[0])
    with pytest.raises(ValueError, match=f'0 has {reason}, which a plain'):
        fuse_pws(model, inplace)
    fused = fuse_pws(model, inplace, strict=False)
    kinds = [type(m) for m in convolutions(fused)]
    assert kinds == [type(model[0]), nn.Conv2d, nn.Conv2d]


def test_to_conv2d_refuses_a_forward_of_its_own():
    with pytest.raises(TypeError, match='Doubled with a forward of its own is no'):
        to_conv2d(Doubled(3, 4, 3))


def test_a_layer_with_a_compiled_forward_becomes_plain():
    model = randomize(net())
    model[0].forward = torch.compile(model[0].forward, backend='eager')
    x = torch.randn(1, 3, 9, 9)
    fused = fuse_pws(model)
    assert type(fused[0]) is nn.Conv2d
    check_close(fused(x), model(x))


@pytest.mark.parametrize('mode', [True, False])
def test_each_layer_keeps_its_training_mode(mode):
    model = net().train(mode)
    model[1].train(not mode)
    modes = [m.training for m in fuse_pws(model).modules()]
    assert modes == [m.training for m in model.modules()]


def test_compiled_methods_are_bound_to_the_copy():
    model = net().eval()
    model.forward = torch.compile(model.forward, backend='eager')
    model[1].other = torch.compile(model[1].forward, backend='eager')
    fused = fuse_pws(model)
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    for p in model.parameters():
        nn.init.zeros_(p)
    check_close(fused(x), expected)
    check_close(fused[1].other(fused[0](x)), fused[1](fused[0](x)))


@pytest.mark.xfail(
    torch.__version__ < '2.3',
    reason='torch 2.1 gives compiled modules no gradients after they are replaced',
)
@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize('part', ['all', 'a part', 'a layer'])
def test_compiled_modules_run_the_plain_convolutions(part, inplace):
    torch.compiler.reset()
    model = randomize(net())
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    compiled = functools.partial(torch.compile, backend='eager')
    if part == 'all':
        model = compiled(model)
    elif part == 'a part':
        model[1] = compiled(model[1])
    else:
        model[0] = compiled(model[0])
    check_close(model(x), expected)
    fused = fuse_pws(model, inplace)
    check_close(fused(x), expected)
    if not inplace:
        for p in model.parameters():
            nn.init.zeros_(p)
        check_close(fused(x), expected)
    plain = convolutions(fused)
    assert {type(m) for m in plain} == {nn.Conv2d}
    fused(x).sum().backward()
    assert all(m.weight.grad is not None for m in plain)


def half_precision(model):
    model.bfloat16()
    model.register_forward_pre_hook(lambda _, args: args[0].bfloat16())


def autocast(model):
    """Do nothing here: the test itself enters autocast."""


def compilation(model):
    torch.compiler.reset()
    model.compile(backend='aot_eager', fullgraph=True)


def channels_last(model):
    maps = dict(memory_format=torch.channels_last)
    model.to(**maps)
    model.register_forward_pre_hook(lambda _, args: args[0].to(**maps))


@pytest.mark.parametrize(
    'switch', [half_precision, autocast, compilation, channels_last]
)
@pytest.mark.parametrize('fused_first', [True, False])
@torch.no_grad()
def test_half_precision_compilation_and_memory_format(switch, fused_first):
    """Each works before and after the network is fused."""
    model = PWSResNet(18, base_channels=8)
    randomize(model)
    x = torch.randn(2, 3, 64, 64)
    expected = fuse_pws(model)(x)
    steps = [functools.partial(fuse_pws, inplace=True), switch]
    with torch.autocast('cpu', torch.bfloat16, enabled=switch is autocast):
        for step in steps if fused_first else steps[::-1]:
            step(model)
            made = model(x)
    assert {type(m) for m in convolutions(model)} == {nn.Conv2d}
    is_half = switch in (half_precision, autocast)
    check_close([y.float() for y in made], expected, 0.05 if is_half else 1e-5)
    for y in made:
        assert y.dtype == (torch.bfloat16 if is_half else torch.float32)
        if switch is channels_last:
            assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'memory_format', [torch.channels_last, torch.contiguous_format], ids=str
)
def test_the_memory_format_is_kept(memory_format):
    conv = randomize(PWSConv2d(3, 4, 3)).to(memory_format=memory_format)
    plain = fuse_pws(conv)
    assert plain.weight.stride() == conv.weight.stride()
    assert torch.equal(plain.weight, conv.effective_weight())


def test_a_weight_that_the_network_reads_itself_is_kept():
    """TOOD's decomposition of tasks scales the weight and does not call the layer."""
    head = TOODHead(
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=2,
        anchor_type='anchor_free',
        conv_cfg=dict(type='PWS', keep_mean=True),
        norm_cfg=dict(type='NoNorm'),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8],
        ),
        initial_loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
    )
    head = randomize(head)
    fused = fuse_pws(head)
    assert not any(isinstance(m, PWSConv2d) for m in fused.modules())
    maps = [torch.randn(1, 8, 6, 7)]
    check_close(fused(maps), head(maps))
    with pytest.raises(ValueError, match='reduction_conv.conv: the network reads'):
        load_bn_weights(head, fused.state_dict())


def test_no_random_number_is_drawn():
    model = net()
    state = torch.get_rng_state()
    fuse_pws(model)
    assert torch.equal(torch.get_rng_state(), state)


class Twice(nn.Module):
    """One convolution under two names, and a module that holds it as well."""

    def __init__(self):
        super().__init__()
        self.first = self.second = PWSConv2d(3, 3, 3, padding=1)
        self.inner = nn.Sequential(self.first)

    def forward(self, x):
        return self.second(self.first(x)) + self.inner(x)


@pytest.mark.parametrize('inplace', [True, False])
def test_a_shared_layer_stays_shared(inplace):
    model = randomize(Twice())
    x = torch.randn(1, 3, 5, 5)
    expected = model(x)
    fused = fuse_pws(model, inplace=inplace)
    assert fused.first is fused.second is fused.inner[0]
    assert type(fused.first) is nn.Conv2d
    assert len(list(fused.parameters())) == 2
    check_close(fused(x), expected)


def test_retinanet_keeps_one_head_for_all_levels():
    head = RetinaHead(3, 8, feat_channels=8, stacked_convs=2, conv_cfg=dict(type='PWS'))
    randomize(head)
    fused = fuse_pws(head)
    assert {type(m) for m in convolutions(fused)} == {nn.Conv2d}
    assert len(convolutions(fused)) == len(convolutions(head))
    maps = [torch.randn(1, 8, n, n) for n in (16, 8, 4, 2, 1)]
    check_close(fused(maps), head(maps))


def test_the_wrapper_of_a_distributed_training_is_removed():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = randomize(net())
        wrapped = MMDistributedDataParallel(model)
        fused = fuse_pws(wrapped)
        assert type(fused) is nn.Sequential
        inplace = fuse_pws(wrapped, inplace=True)
        assert inplace is model
        del wrapped
        gc.collect()  # Destroy the wrapper before the process group.
    finally:
        dist.destroy_process_group()
    x = torch.randn(1, 3, 9, 9)
    check_close(fused(x), inplace(x))


def test_an_averaged_model_stays_an_averaged_model():
    model = randomize(net())
    ema = ExponentialMovingAverage(model, momentum=0.5)
    ema.update_parameters(model)
    randomize(model)
    ema.update_parameters(model)
    fused = fuse_pws(ema)
    assert type(fused) is ExponentialMovingAverage
    assert {type(m) for m in convolutions(fused)} == {nn.Conv2d}
    x = torch.randn(1, 3, 9, 9)
    check_close(fused(x), ema(x))
    with pytest.raises(AssertionError):
        check_close(fused(x), model(x))


def test_bias_conv2d_ignores_bias_false():
    conv = bias_conv2d(4, 6, 3, stride=2, groups=2, bias=False)
    assert type(conv) is nn.Conv2d
    assert (conv.stride, conv.groups, conv.bias.shape) == ((2, 2), 2, (6,))


def small(name):
    """Return config, detector and image size; a large detector gets fewer channels."""
    cfg = load_config(name)
    if 'ssd320' in name:
        halve(cfg)
    elif '_r50_' in name:
        cfg.model.backbone.base_channels = 8
        cfg.model.neck.in_channels = [32, 64, 128, 256]
    heads = cfg.model.get('roi_head')
    if heads:
        heads.bbox_head.fc_out_channels = 64
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        cfg.model.test_cfg.rcnn.max_per_img = 8
        cfg.model.test_cfg.rpn.max_per_img = 20
    else:
        cfg.model.test_cfg.score_thr = 0.0
        cfg.model.test_cfg.max_per_img = 20
    return cfg, randomize(build(cfg)), 320 if 'ssd320' in name else 96


@pytest.mark.parametrize('name', REPARAMETRIZED)
@torch.no_grad()
def test_fused_configs_compute_and_detect_the_same(name):
    cfg, model, size = small(name)
    fused = fuse_pws(model)
    assert not any(isinstance(m, ReparamConv2d) for m in fused.modules())
    data = demo_mm_inputs(
        1,
        [[3, size, size]],
        num_classes=num_classes(cfg),
        with_mask='mask' in name,
        use_box_type=False,
    )
    inputs = model.data_preprocessor(data, False)
    check_close(fused(**inputs, mode='tensor'), model(**inputs, mode='tensor'))

    before, after = (m.test_step(copy.deepcopy(data))[0] for m in (model, fused))
    before, after = before.pred_instances, after.pred_instances
    assert isinstance(before, InstanceData) and len(before) == len(after) > 0
    assert torch.equal(after.labels, before.labels)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(after.bboxes, before.bboxes, rtol=1e-5, atol=1e-3)
    assert ('masks' in before) == ('mask' in name)
    if 'mask' in name:
        assert (before.masks != after.masks).float().mean() < 1e-4
