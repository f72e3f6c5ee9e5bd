"""A training step with the options that users switch on, alone and in pairs.

An option changes how a step is computed, but not its result: the gradients equal those
of the plain step.
"""

import contextlib
import copy
import functools
import importlib
import itertools
import math
import os
from unittest import mock

import pytest
import torch
from conftest import load_config, run_on_two_processes, runner_of
from mmcv.ops import RoIAlign
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import (
    BaseModel,
    MMDistributedDataParallel,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import init_default_scope
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d, PWSRunner, fuse_pws, share_filters
from pws_mmdet.layers import share_filters_of_heads
from pws_mmdet.models import PWSResNet, PWSSSDHead
from pws_mmdet.utils.model import unwrap_model

nms_module = importlib.import_module('mmcv.ops.nms')  # not the function
NUM_IMAGES = 4
SIZE = 64


class Head(nn.Sequential):
    """A head that is applied to feature maps of two sizes."""

    forward_single = nn.Sequential.forward

    def forward(self, x):
        return [self.forward_single(x), self.forward_single(x[..., ::2, ::2])]


class Layers(BaseModel):
    """A network of PWS convolutions of several kinds."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            PWSConv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            PWSConv2d(
                *(8, 8, 3), groups=2, gamma=0.1, relative_gamma=True, keep_mean=True
            ),
            nn.ReLU(),
        )
        self.head = Head(
            PWSConv2d(8, 8, 3), nn.ReLU(), PWSConv2d(8, 4, 1, alpha='layer')
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.head(self.backbone(torch.stack(inputs)))
        if mode == 'loss':
            return dict(loss=sum(x.square().mean() for x in maps))
        return [*maps[0].square().mean((1, 2, 3))]


class Pyramid(BaseModel):
    """The backbone and the neck of a detector."""

    def __init__(self, detector):
        super().__init__(detector.data_preprocessor)
        self.backbone, self.neck = detector.backbone, detector.neck

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.neck(self.backbone(inputs))
        return dict(loss=sum(x.square().mean() for x in maps))


def detector(name):
    cfg = load_config(f'configs/mini/{name}_pws_digits.py').model
    if name.startswith('mask'):
        cfg.backbone.base_channels = 8
        cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        cfg.rpn_head.update(in_channels=16, feat_channels=16)
        for part in ('bbox', 'mask'):
            cfg.roi_head[f'{part}_roi_extractor'].out_channels = 16
            cfg.roi_head[f'{part}_head'].in_channels = 16
        cfg.roi_head.bbox_head.fc_out_channels = 32
        cfg.roi_head.mask_head.conv_out_channels = 16
        # Each image gets the same number of samples, and one positive sample.
        cfg.train_cfg.rcnn.sampler.update(num=16, pos_fraction=1 / 16)
        cfg.test_cfg.rcnn.score_thr = 0.0
    else:
        channels = (64, 128, 64, 32)
        cfg.backbone.width = 0.125
        cfg.neck.update(in_channels=channels[:2], out_channels=channels)
        cfg.bbox_head.in_channels = channels
        cfg.test_cfg.score_thr = 0.0
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def mask_rcnn():
    return detector('mask_rcnn_r18_fpn')


CASES = dict(
    layers=Layers,
    pyramid=lambda: Pyramid(mask_rcnn()),
    ssd=lambda: detector('ssd96_vgg16'),
    mask_rcnn=mask_rcnn,
)
TRAINED = ['layers', 'ssd', 'mask_rcnn']


@torch.no_grad()
def randomize(model):
    for conv in model.modules():
        if isinstance(conv, PWSConv2d):
            conv.alpha.uniform_(0.8, 1.2)
            conv.bias.normal_(std=0.1)
            if conv.mean is not None:
                conv.mean.normal_(std=0.1)
    return model


def prepare(case):
    """Return a model whose loss is a mean over images, and the images."""
    torch.manual_seed(0)
    init_default_scope('mmdet')
    model = randomize(CASES[case]())
    if case == 'layers':
        return model, dict(inputs=[*torch.randn(NUM_IMAGES, 3, 32, 32)])
    sizes = [[3, SIZE, SIZE]] * NUM_IMAGES
    objects = [2, 1, 3, 2]
    kwargs = dict(num_items=objects, num_classes=10, with_mask=True)
    inputs = demo_mm_inputs(NUM_IMAGES, sizes, **kwargs)
    for sample in inputs['data_samples']:
        # A tuple, as in pipelines: torch.compile cannot always copy an array.
        sample.set_metainfo(dict(scale_factor=(1.1, 1.2)))
    return model, inputs


@pytest.fixture(autouse=True)
def means_over_images():
    patches = pytest.MonkeyPatch()
    patch(patches)
    yield
    patches.undo()


def patch(patches):
    """Make the loss of an image independent of the other images of its batch."""
    # Take the first samples, not random ones.
    patches.setattr(RandomSampler, 'random_choice', lambda _, gallery, n: gallery[:n])

    # SSD divides by the number of positives in the batch.
    stock = PWSSSDHead.get_targets

    def get_targets(self, anchor_list, *args, **kwargs):
        *targets, _ = stock(self, anchor_list, *args, **kwargs)
        return (*targets, 10 * len(anchor_list))

    patches.setattr(PWSSSDHead, 'get_targets', get_targets)


def autocast(model):
    return torch.autocast('cpu', torch.bfloat16)


def uncached_autocast(model):
    """Switch the cache of autocast off: plain filters are then cast at each use."""
    return torch.autocast('cpu', torch.bfloat16, cache_enabled=False)


def accumulation(model):
    """Accumulate gradients, one image after the other: see ``step``."""


def sharing(model):
    share_filters_of_heads(model)


def channels_last(model):
    model.to(memory_format=torch.channels_last)
    maps = dict(memory_format=torch.channels_last)
    model.backbone.register_forward_pre_hook(lambda _, args: (args[0].to(**maps),))


def compilation(model):
    torch.compiler.reset()
    options = dict(backend='aot_eager', fullgraph=True)
    model.backbone = torch.compile(model.backbone, **options)


def checkpointing(model, reentrant=False):
    convs = [m for m in model.modules() if isinstance(m, PWSConv2d)]
    for conv in convs[1:]:  # the input of the first needs no gradient
        conv.forward = functools.partial(
            checkpoint, conv.forward, use_reentrant=reentrant
        )


def reentrant_checkpointing(model):
    checkpointing(model, reentrant=True)


def plain_convolutions(model):
    fuse_pws(model, inplace=True)


def step(
    case,
    switches=(),
    images=range(NUM_IMAGES),
    wrap=lambda model: model,
    wrap_optimizer=OptimWrapper,
):
    """Take a training step with some of the images. Return the gradients by name."""
    model, inputs = prepare(case)
    with contextlib.ExitStack() as stack:
        for switch in switches:
            context = switch(model)
            if context is not None:
                stack.enter_context(context)
        wrapped = wrap(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        batches = [[i] for i in images] if accumulation in switches else [images]
        wrapper = wrap_optimizer(optimizer, accumulative_counts=len(batches))
        for batch in batches:
            data = {key: [values[i] for i in batch] for key, values in inputs.items()}
            wrapped.train_step(copy.deepcopy(data), wrapper)
    # After one step, the momentum is the gradient.
    grads = {
        name.replace('_orig_mod.', ''): optimizer.state[p]['momentum_buffer']
        for name, p in model.named_parameters()
    }
    return {n: g.full_tensor() if is_sharded(g) else g for n, g in grads.items()}


def is_sharded(tensor):
    return isinstance(tensor, DTensor)


plain_step = functools.cache(step)


def assert_same(made, wanted, tolerance):
    largest = max(right.abs().max().item() for right in wanted.values())
    assert made.keys() == wanted.keys()
    for name, right in wanted.items():
        # The terms of some gradients cancel, so their rounding errors are large.
        atol = tolerance * (right.abs().max().item() + 0.1 * largest)
        torch.testing.assert_close(
            made[name], right, rtol=0, atol=atol, msg=lambda m, n=name: f'{n}: {m}'
        )


def assert_same_step(made, case, switches):
    """The gradients equal those without options, in the same precision."""
    if autocast not in switches:
        assert_same(made, plain_step(case), 1e-4)
    else:
        # Other kernels round differently.
        tolerance = 0.3 if channels_last in switches else 0.05
        assert_same(made, plain_step(case, (autocast,)), tolerance)


def combinations():
    alone = [
        autocast,
        accumulation,
        sharing,
        channels_last,
        compilation,
        checkpointing,
        reentrant_checkpointing,
    ]
    # A pair holds at most one kind of checkpointing.
    pairs = list(itertools.combinations(alone[:-1], 2))
    pairs += [(accumulation, reentrant_checkpointing)]
    for case in CASES:
        for switches in [*((switch,) for switch in alone), *pairs]:
            if case == 'mask_rcnn' and {autocast, channels_last} & {*switches}:
                continue  # see test_mask_rcnn_takes_the_same_step
            if case != 'layers' and (
                sharing in switches  # each PWS convolution is used once
                or compilation in switches
                and len(switches) > 1  # to compile takes seconds
            ):
                continue
            names = '+'.join(switch.__name__ for switch in switches)
            yield pytest.param(case, switches, id=f'{case}-{names}')


@pytest.mark.parametrize('case, switches', combinations())
def test_options_do_not_change_a_step(case, switches):
    assert_same_step(step(case, switches), case, switches)


@pytest.mark.parametrize(
    'switches',
    [(autocast,), (channels_last,), (autocast, accumulation)],
    ids=lambda switches: '+'.join(switch.__name__ for switch in switches),
)
def test_mask_rcnn_takes_the_same_step(switches, monkeypatch):
    """MMCV's operators for CPUs need contiguous fp32 inputs: cast them here."""
    align, nms = RoIAlign.forward, nms_module.ext_module.nms
    monkeypatch.setattr(
        RoIAlign,
        'forward',
        lambda self, x, rois: align(self, x.float().contiguous(), rois.float()).to(
            x.dtype
        ),
    )
    monkeypatch.setattr(
        nms_module.ext_module,
        'nms',
        lambda boxes, scores, **kwargs: nms(boxes.float(), scores.float(), **kwargs),
    )
    made, right = step('mask_rcnn', switches), plain_step('mask_rcnn')
    if autocast in switches:
        assert_same(made, step('mask_rcnn', (autocast,)), 0.05)
        flat = [torch.cat([g[n].flatten() for n in right]) for g in (made, right)]
        assert torch.cosine_similarity(*flat, dim=0) > 0.9
    else:
        assert_same(made, right, 1e-4)


@pytest.mark.parametrize('case', ['layers', 'pyramid', 'ssd'])
@pytest.mark.parametrize('half', [(), (uncached_autocast,)], ids=['fp32', 'bf16'])
def test_gradients_follow_from_those_of_plain_convolutions(case, half):
    """The chain rule gives the gradients of W and alpha.

    Plain convolutions give the gradients of the standardized filters. The same holds in
    half precision, since the filters are standardized in fp32.
    """
    wanted = step(case, (plain_convolutions, *half))
    model, _ = prepare(case)
    for name, conv in model.named_modules():
        if isinstance(conv, PWSConv2d):
            outputs = (conv.effective_weight(), conv.expanded_bias())
            grads = [wanted[f'{name}.{key}'] for key in ('weight', 'bias')]
            parameters = dict(conv.named_parameters(prefix=name))
            grads = torch.autograd.grad(outputs, [*parameters.values()], grads)
            wanted.update(zip(parameters, grads, strict=True))
    made = step(case, half)
    assert_same(made, wanted, 1e-4)
    # Half precision rounds, but the direction of the gradient is right.
    right = plain_step(case)
    flat = [torch.cat([g[n].flatten() for n in right]) for g in (made, right)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.9


def loss_of(model, inputs):
    data = model.data_preprocessor(copy.deepcopy(inputs), True)
    return model.parse_losses(model(**data, mode='loss'))[0]


@pytest.fixture(scope='module')
def inductor():
    """Return torch.compile with its default backend. Skip if it lacks a compiler."""
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except RuntimeError as e:
        pytest.skip(f'torch cannot compile here: {str(e).splitlines()[0]}')
    return functools.partial(torch.compile, fullgraph=True)


NETS = dict(
    layer=functools.partial(PWSConv2d, 3, 6, 3, groups=3),
    kept=functools.partial(PWSConv2d, 3, 6, 3, keep_mean=True),
    predictor=functools.partial(PWSConv2d, 3, 6, 3, alpha='layer'),
    backbone=functools.partial(  # two blocks
        PWSResNet,
        18,
        base_channels=8,
        num_stages=1,
        strides=[1],
        dilations=[1],
        out_indices=[0],
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize('net', NETS)
def test_compiled_networks_compute_the_same(inductor, net):
    model = randomize(NETS[net]())
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    parameters = dict(model.named_parameters(), x=x)

    def outputs_and_gradients(forward):
        outputs = forward(x)
        loss = sum(y.square().mean() for y in outputs)
        grads = torch.autograd.grad(loss, parameters.values())
        return dict(enumerate(outputs)) | dict(zip(parameters, grads, strict=True))

    made, wanted = map(outputs_and_gradients, (inductor(model), model))
    assert_same(made, wanted, 1e-4)
    if net == 'backbone':  # the fused network, too
        with torch.no_grad():
            torch.testing.assert_close(inductor(fuse_pws(model))(x), model(x))


@pytest.mark.parametrize('case', TRAINED)
def test_pruned_weights_train_like_masked_weights(case):
    """fuse_pws makes plain convolutions of the pruned weights."""
    pruned, inputs = prepare(case)
    masked, _ = prepare(case)
    masks = {}
    for name, conv in pruned.named_modules():
        if isinstance(conv, PWSConv2d):
            prune.random_unstructured(conv, 'weight', 0.5)
            masks[name] = conv.weight_mask
    share_filters_of_heads(pruned)
    models = (pruned, masked)
    wrappers = [
        OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        for model in models
    ]
    for _ in range(3):
        for name, mask in masks.items():
            masked.get_submodule(name).weight.data.mul_(mask)
        losses = [
            model.train_step(copy.deepcopy(inputs), wrapper)['loss']
            for model, wrapper in zip(models, wrappers, strict=True)
        ]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        for name, mask in masks.items():
            used = pruned.get_submodule(name).weight
            assert not used[mask == 0].any() and used[mask == 1].all()
    fused = fuse_pws(pruned)
    for name, mask in masks.items():
        conv = masked.get_submodule(name)
        conv.weight.data.mul_(mask)
        filters = fused.get_submodule(name).weight
        torch.testing.assert_close(filters, conv.effective_weight())
    losses = [loss_of(model, inputs) for model in (fused, pruned)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize('pre_activation', [True, False])
@pytest.mark.parametrize('half', [False, True])
def test_with_cp_checkpoints_each_block(pre_activation, half, monkeypatch):
    """The gradients stay the same, in half precision, too."""
    count = mock.Mock(wraps=checkpoint)
    monkeypatch.setattr(torch.utils.checkpoint, 'checkpoint', count)
    grads = []
    x = torch.randn(2, 3, SIZE, SIZE)
    for with_cp in (False, True):
        torch.manual_seed(0)
        options = dict(base_channels=8, pre_activation=pre_activation)
        net = PWSResNet(18, with_cp=with_cp, **options)
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = sum(y.square().mean() for y in net(x))
        loss.backward()
        assert count.call_count == 8 * with_cp
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert_same(*grads, 0.05 if half else 1e-4)


def distributed_data_parallel(model):
    return MMDistributedDataParallel(model, find_unused_parameters=False)


def static_graph(model):
    return MMDistributedDataParallel(model, static_graph=True)


def fully_sharded(model):
    mesh = init_device_mesh('cpu', (2,))
    for conv in [m for m in model.modules() if isinstance(m, PWSConv2d)]:
        fully_shard(conv, mesh=mesh)
    return fully_shard(model, mesh=mesh)


DISTRIBUTED = [
    *itertools.product(
        ['layers', 'mask_rcnn', 'ssd'],
        [distributed_data_parallel, static_graph, fully_sharded],
        [()],
    ),
    ('mask_rcnn', distributed_data_parallel, (accumulation,)),
    ('mask_rcnn', distributed_data_parallel, (checkpointing,)),
    ('mask_rcnn', static_graph, (reentrant_checkpointing,)),
    ('ssd', distributed_data_parallel, (autocast,)),
    ('ssd', distributed_data_parallel, (autocast, accumulation)),
    ('ssd', fully_sharded, (autocast,)),
    ('layers', distributed_data_parallel, (sharing,)),
    ('layers', distributed_data_parallel, (sharing, accumulation)),
    ('layers', distributed_data_parallel, (compilation,)),
    ('layers', fully_sharded, (sharing,)),
    ('layers', fully_sharded, (checkpointing,)),
]


def distributed_worker(rank, path):
    patch(pytest.MonkeyPatch())
    images = range(2 * rank, 2 * rank + 2)
    steps = [step(case, switches, images, wrap) for case, wrap, switches in DISTRIBUTED]
    if rank == 0:
        torch.save(steps, path)


@pytest.fixture(scope='module')
def distributed_steps(tmp_path_factory):
    path = tmp_path_factory.mktemp('steps') / 'gradients.pth'
    run_on_two_processes(distributed_worker, path)
    return torch.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'i',
    range(len(DISTRIBUTED)),
    ids=lambda i: '-'.join(
        [
            DISTRIBUTED[i][0],
            *(f.__name__ for f in DISTRIBUTED[i][1:2] + DISTRIBUTED[i][2]),
        ]
    ),
)
def test_two_processes_take_the_same_step_as_one(distributed_steps, i):
    case, _, switches = DISTRIBUTED[i]
    assert_same_step(distributed_steps[i], case, switches)


@pytest.mark.parametrize('parts', [1, NUM_IMAGES])
@pytest.mark.parametrize('case', ['layers', 'pyramid', 'ssd'])
def test_amp_optim_wrapper_equals_autocast(case, parts, monkeypatch):
    """A config switches AmpOptimWrapper on. The batch is taken at once or in parts."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)

    def wrap(optimizer, accumulative_counts):
        return AmpOptimWrapper(
            optimizer=optimizer,
            dtype='bfloat16',
            loss_scale=1.0,
            accumulative_counts=accumulative_counts,
        )

    in_parts = () if parts == 1 else (accumulation,)
    made = step(case, in_parts, wrap_optimizer=wrap)
    assert_same_step(made, case, (autocast,))
    # The step was taken in half precision.
    fp32 = plain_step(case)
    assert not all(torch.allclose(g, fp32[n], rtol=1e-4) for n, g in made.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='fp16 needs a GPU')
@pytest.mark.parametrize('case', ['layers', 'ssd', 'mask_rcnn'])
def test_fp16_on_a_gpu(case):
    model, inputs = prepare(case)
    model.cuda()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    wrapper = AmpOptimWrapper(optimizer=optimizer, loss_scale=128.0)
    for _ in range(3):
        losses = model.train_step(copy.deepcopy(inputs), wrapper)
        assert math.isfinite(losses['loss'])
    for name, p in model.state_dict().items():
        is_constant = name.endswith('.mean')
        assert p.isfinite().all() and torch.equal(p, before[name]) == is_constant, name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('case', ['layers', 'pyramid', 'ssd'])
@torch.no_grad()
def test_half_precision_inference_is_close_to_fp32(case, dtype):
    model, _ = prepare(case)
    for conv in model.modules():
        if isinstance(conv, PWSConv2d):
            conv.weight.mul_(1e-2)  # gamma is large compared with the variance
            conv.gamma = 1e-8  # 0 in fp16
    x = torch.randn(2, 3, SIZE, SIZE)
    wanted = maps_of(model, x)
    for made, right in zip(maps_of(model.to(dtype), x.to(dtype)), wanted, strict=True):
        error = (made.float() - right).norm() / right.norm()
        assert error < 30 * torch.finfo(dtype).eps


def maps_of(model, x):
    maps = model.backbone(x)
    return model.neck(maps) if hasattr(model, 'neck') else model.head(maps)


@pytest.mark.parametrize(
    'case, strict',
    [('layers', True), ('layers', False), ('pyramid', False), ('ssd', False)],
)
@torch.no_grad()
def test_exported_programs_compute_the_same(case, strict):
    model, _ = prepare(case)
    backbone = share_filters(model.backbone)
    x, other = torch.randn(2, 2, 3, SIZE, SIZE)
    program = torch.export.export(backbone, (x,), strict=strict)
    torch.testing.assert_close(program.module()(other), backbone(other))


@pytest.mark.parametrize('alpha', ['channel', 'layer', 'fixed'])
def test_functional_transforms_equal_loops(alpha):
    convs = [PWSConv2d(4, 6, 3, groups=2, alpha=alpha).double() for _ in range(3)]
    for p in nn.ModuleList(convs).parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    weights, _ = stack_module_state(convs)

    def loss(parameters, x):
        y = functional_call(convs[0], parameters, x)
        return y.square().sum(), y

    per_model = vmap(grad(loss, has_aux=True), (0, None))
    per_image = vmap(grad(loss, has_aux=True), (None, 0))
    grads, outputs = per_model(weights, x)
    for i, conv in enumerate(convs):
        y = conv(x)
        torch.testing.assert_close(outputs[i], y)
        wanted = torch.autograd.grad(y.square().sum(), conv.parameters())
        made = [grads[name][i] for name, _ in conv.named_parameters()]
        torch.testing.assert_close(made, list(wanted))
    single, _ = per_image(dict(convs[0].named_parameters()), x)
    for name, g in single.items():
        torch.testing.assert_close(g.sum(0), grads[name][0])


def test_conversions_of_batch_norm_leave_pws_alone():
    model = nn.Sequential(PWSConv2d(3, 4, 3), nn.BatchNorm2d(4))
    conv, parameters = model[0], list(model[0].parameters())
    for convert, norm in (
        (nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm),
        (revert_sync_batchnorm, nn.modules.batchnorm._BatchNorm),
        (lambda m: convert_sync_batchnorm(m, 'torch'), nn.SyncBatchNorm),
    ):
        model = convert(model)
        assert isinstance(model[1], norm) and model[0] is conv
        assert all(a is b for a, b in zip(conv.parameters(), parameters, strict=True))


class Images(Dataset):
    """The images that ``prepare`` returns for a case."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, i):
        return copy.deepcopy({key: values[i] for key, values in self.inputs.items()})


class Outputs(BaseMetric):
    """Collect the outputs. Of a detection it takes the scores, the greatest first."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            if isinstance(sample, dict):
                scores = sample['pred_instances']['scores']
                sample = nn.functional.pad(scores, (0, 100 - len(scores)))
            self.results.append(sample)

    def compute_metrics(self, results):
        return dict(outputs=torch.stack(results))


class Record(Hook):
    """Keep the weights after each step, their average, and the validation metrics."""

    priority = 'LOW'  # after EMAHook

    def __init__(self):
        self.made = dict(weights=[])

    def after_train_iter(self, runner, *args, **kwargs):
        self.made['weights'].append(weights_of(runner.model))

    def after_val_epoch(self, runner, metrics):
        self.made.update(metrics)

    def after_train(self, runner):
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.made['averaged'] = weights_of(hook.ema_model.module)


def weights_of(model):
    return copy.deepcopy(dict(unwrap_model(model).named_parameters()))


def runner_for(case, work_dir, processes=1, seed=0, **kwargs):
    model, inputs = prepare(case)
    if case == 'layers':
        torch.manual_seed(seed)
        model = Layers()
    images = dict(dataset=Images(inputs), collate_fn=dict(type='pseudo_collate'))
    loader = dict(batch_size=1, num_workers=0, **images)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    cfg = dict(
        batch_size=2 // processes,
        loader=images,
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
        randomness=dict(seed=seed),
        launcher='none' if processes == 1 else 'pytorch',
    )
    for part in ('val', 'test'):
        cfg[f'{part}_dataloader'] = loader
        cfg[f'{part}_cfg'] = dict()
        cfg[f'{part}_evaluator'] = dict(type=Outputs)
    return runner_of(model, None, work_dir, PWSRunner, **{**cfg, **kwargs})


def train(work_dir, case='layers', processes=1, ema=False, **kwargs):
    """Train for two epochs. Return what ``Record`` keeps, and a test's outputs."""
    hooks = [EMA] if ema else []
    make = functools.partial(runner_for, case, work_dir, processes, **kwargs)
    record = Record()
    make(custom_hooks=[*hooks, record]).train()
    if processes > 1:
        torch.distributed.barrier()  # the first process writes the checkpoint
    # Another runner tests: a test in the same runner would restart the average.
    checkpoint = str(work_dir / 'epoch_2.pth')
    tested = make(custom_hooks=hooks, load_from=checkpoint, resume=True).test()
    return dict(record.made, tested=tested['outputs'])


EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma=1)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a cached ``train``: it trains once for the same options."""

    @functools.cache
    def make(case='layers', **kwargs):
        return train(tmp_path_factory.mktemp('train'), case, **kwargs)

    return make


def test_the_same_seed_gives_the_same_bits(trained, tmp_path):
    again = train(tmp_path)
    torch.testing.assert_close(again, trained(), rtol=0, atol=0)
    other = trained(seed=1)['weights'][-1]
    assert not any(torch.equal(p, other[n]) for n, p in again['weights'][-1].items())


@pytest.mark.parametrize('case', ['ssd', 'mask_rcnn'])
def test_detectors_train_the_same_to_the_bit(case):
    def train():
        model, inputs = prepare(case)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        for _ in range(2):
            model.train_step(copy.deepcopy(inputs), wrapper)
        return model.state_dict()

    before = prepare(case)[0].state_dict()
    made = train()
    torch.testing.assert_close(train(), made, rtol=0, atol=0)
    assert not all(torch.equal(p, before[n]) for n, p in made.items() if 'alpha' in n)


@pytest.mark.slow
@pytest.mark.parametrize('case', TRAINED)
def test_compiled_training_equals_plain_training(trained, tmp_path, case):
    torch.compiler.reset()
    cfg = Config(dict(compile=dict(backend='eager')))
    made = train(tmp_path, case, ema=True, cfg=cfg)
    torch.testing.assert_close(made, trained(case, ema=True), rtol=1e-4, atol=1e-5)


def average(weights):
    """Average the weights of all steps by the formula of ``EMA``."""
    averaged = weights[0]
    for i, last in enumerate(weights[1:], 1):
        share = 0.9 * math.exp(-1 - i) + 0.1
        averaged = {n: (1 - share) * w + share * last[n] for n, w in averaged.items()}
    return averaged


@pytest.mark.parametrize('case', TRAINED)
def test_validation_and_test_use_the_averaged_weights(trained, tmp_path, case):
    last, made = trained(case), trained(case, ema=True)
    torch.testing.assert_close(made['weights'], last['weights'], rtol=0, atol=0)
    averaged = average(made['weights'])
    torch.testing.assert_close(made['averaged'], averaged)
    path = str(tmp_path / 'averaged.pth')
    torch.save(averaged, path)
    wanted = runner_for(case, tmp_path, load_from=path).test()['outputs']
    for outputs in (made['outputs'], made['tested']):
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(outputs, last['outputs'], rtol=1e-2)


def training_worker(rank, path):
    os.environ['LOCAL_RANK'] = str(rank)
    patch(pytest.MonkeyPatch())
    for case in TRAINED:
        made = train(path / case, case, processes=2, ema=True)
        torch.save(made, path / case / f'{rank}.pth')


@pytest.fixture(scope='module')
def trained_by_two(tmp_path_factory):
    path = tmp_path_factory.mktemp('two')
    run_on_two_processes(training_worker, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('case', TRAINED)
def test_two_processes_train_and_test_like_one(trained, trained_by_two, case, rank):
    made = torch.load(trained_by_two / case / f'{rank}.pth')
    torch.testing.assert_close(made, trained(case, ema=True), rtol=1e-4, atol=1e-5)
