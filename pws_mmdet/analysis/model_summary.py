"""What a network is made of: kinds of layers, their parameters and multiply-adds."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d, is_norm
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from ..layers import NoNorm, PWSConv2d
from ..layers.reparam_conv import ReparamConv2d

PWS = 'PWS convolutions'
REPARAMETRIZED = 'other reparametrized convolutions'
PLAIN = 'plain convolutions'
LINEAR = 'linear layers'
NORM = 'layers that normalize'
REST = 'the rest'
KINDS = (PWS, REPARAMETRIZED, PLAIN, LINEAR, NORM, REST)
TOTAL = 'total'
NO_DECAY = "optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')"


@dataclass(frozen=True)
class LayerSummary:
    """A module that holds parameters of its own, or normalizes.

    Args:
        name: Its name in the model, the first one if it has several.
        type: Its class.
        kind: One of ``KINDS``.
        parameters: Number of values in its parameters. A parameter that a layer
            before it holds, too, does not count.
        frozen: Whether it has parameters, and none of them requires a gradient.
        macs: Multiply-adds of all its applications in a forward pass, None if they
            were not measured.
    """

    name: str
    type: str
    kind: str
    parameters: int
    frozen: bool
    macs: int | None


@dataclass(frozen=True)
class Composition:
    """What a network is made of; as a string, a table and what stands out.

    Args:
        layers: Its layers, in the order of ``named_modules()``.
        other_macs: Multiply-adds outside of all layers, None if they were not
            measured.
        alphas: Number of alphas of PWS convolutions.
        trained_alphas: Number of those that are trained.
        decayed_alphas: Names of the parameters alpha that weight decay pulls towards
            0, None if no optimizer was given.
        findings: Sentences on what stands out.
    """

    layers: list[LayerSummary]
    other_macs: int | None
    alphas: int
    trained_alphas: int
    decayed_alphas: list[str] | None
    findings: list[str]

    def kinds(self) -> list[dict[str, Any]]:
        """The numbers of each kind, and of all: the rows of the table.

        ``types`` counts the layers of each class. ``macs`` is None if they were not
        measured; those outside of all layers are in 'the rest'.
        """
        rows = []
        for kind in (*KINDS, TOTAL):
            layers = [layer for layer in self.layers if kind in (layer.kind, TOTAL)]
            macs = self.other_macs
            if macs is not None:
                macs = macs if kind in (REST, TOTAL) else 0
                macs += sum(layer.macs for layer in layers)
            row = dict(
                kind=kind,
                layers=len(layers),
                frozen=sum(layer.frozen for layer in layers),
                parameters=sum(layer.parameters for layer in layers),
                macs=macs,
                types=dict(Counter(layer.type for layer in layers).most_common()),
            )
            rows.append(row)
        return rows

    def __str__(self) -> str:
        rows = self.kinds()
        total = rows[-1]
        columns = {'parameters': 'parameters', 'macs': 'MACs'}
        if total['macs'] is None:
            del columns['macs']
        lines = [['', 'layers', 'frozen']]
        for title in columns.values():
            lines[0] += [title, '']  # its share has no title
        lines[0].append('')
        for row in rows:
            if not (row['layers'] or row['macs'] or row is total):
                continue
            line = [row['kind'], str(row['layers']), str(row['frozen'])]
            for key in columns:
                share = row[key] / total[key] if total[key] else 0
                line += [_short(row[key]), f'{share:.1%}']
            types = {} if row is total else row['types']
            line.append(', '.join(f'{n} {name}' for name, n in types.items()))
            lines.append(line)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = []
        for first, *numbers, types in lines:
            cells = map(str.rjust, numbers, widths[1:])
            text.append('  '.join([first.ljust(widths[0]), *cells, types]).rstrip())
        return '\n'.join([*text, '', *self.findings])


def summarize_model(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any] | Sequence[int] | None = None,
    optimizer: Optimizer | OptimWrapper | OptimWrapperDict | None = None,
) -> Composition:
    """Say what a network is made of.

    A layer normalizes if it is one of BN, GN, LN, IN and their like, or a module
    without children whose class has 'Norm' in its name; :class:`NoNorm` is none.
    Functions that normalize are not seen.

    Multiply-adds (MACs) are what PyTorch's FlopCounterMode counts in a forward pass,
    halved: those of convolutions and of products of matrices, at every application
    of a layer. Biases, normalization, activations and fused kernels of attention do
    not count, nor does computing filters from their parameters, which costs
    O(parameters). The pass is made in eval mode, and leaves the model and PyTorch's
    random numbers as they were.

    Args:
        model: Any module, also one that is wrapped for a distributed training. What
            is said of eval mode is said of the mode that it is in.
        inputs: What to measure the multiply-adds with: the input, the keyword
            arguments of ``forward``, or, for models of MMDetection, height and width
            of a image in pixels, which the model pads as it does in a test. The
            image is random; a second stage sees the proposals that the first one
            finds in it. None measures nothing.
        optimizer: Tells which alphas are trained, and decayed.

    Returns:
        The composition. If the forward pass fails it has no multiply-adds, and its
        last finding says why.
    """
    while is_model_wrapper(model):
        model = model.module
    # torch's modules that compute the weight of a layer are part of the layer
    inner = {
        part
        for module in model.modules()
        if isinstance(module, ParametrizationList)
        for part in module.modules()
    }
    modules = {
        name: module
        for name, module in model.named_modules()
        if module not in inner and _kind(module) is not None
    }
    macs, note = None, []
    if inputs is not None:
        try:
            macs = _measure_macs(model, modules.values(), inputs)
            note = [f'MACs: a forward pass of {_describe_inputs(inputs)}']
        except Exception as e:  # a model may raise anything
            reason = shorten(f'{type(e).__name__}: {e}', 400)
            note = [f'MACs: no forward pass of {_describe_inputs(inputs)}: {reason}']

    layers = []
    seen: set[nn.Parameter] = set()
    for name, module in modules.items():
        parameters = set(_parameters(module))
        layer = LayerSummary(
            name=name,
            type=_class_name(module),
            kind=_kind(module),
            parameters=sum(p.numel() for p in parameters - seen),
            frozen=bool(parameters) and not any(p.requires_grad for p in parameters),
            macs=None if macs is None else macs[module],
        )
        layers.append(layer)
        seen |= parameters

    alphas = {
        f'{name}.alpha': module.alpha
        for name, module in modules.items()
        if isinstance(module, PWSConv2d) and module.alpha is not None
    }
    trained = {name: p for name, p in alphas.items() if p.requires_grad}
    decayed = None
    if optimizer is not None:
        optimized, pulled = _optimized_and_decayed(optimizer)
        trained = {name: p for name, p in trained.items() if p in optimized}
        decayed = [name for name, p in trained.items() if p in pulled]
    return Composition(
        layers=layers,
        other_macs=None if macs is None else macs[None],
        alphas=_numel(alphas),
        trained_alphas=_numel(trained),
        decayed_alphas=decayed,
        findings=[
            *_describe_norms(model, modules),
            *_describe_pws(modules, alphas, trained, decayed),
            *note,
        ],
    )


def find_image_size(
    cfg: Config,
    loaders: Sequence[str] = ('test_dataloader', 'val_dataloader', 'train_dataloader'),
) -> tuple[int, int] | None:
    """Height and width in pixels that a config's pipelines make, the first's first."""
    for loader in loaders:
        for transform in find_dicts(cfg.get(loader)):
            name = transform.get('type')
            name = getattr(name, '__name__', str(name)).split('.')[-1]
            key = dict(Resize='scale', CenterCrop='crop_size').get(name)
            size = transform.get(key)
            if size is not None:
                width, height = (size, size) if isinstance(size, int) else size
                return height, width
    return None


def find_dicts(cfg: Any) -> Iterator[Mapping]:
    """Yield all dicts in nested dicts and lists."""
    if isinstance(cfg, Mapping):
        yield cfg
        cfg = list(cfg.values())
    if isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from find_dicts(value)


def _kind(module: nn.Module) -> str | None:
    """What it is; None if it neither holds parameters nor normalizes."""
    if isinstance(module, ReparamConv2d) and module.deployed:
        return PLAIN
    if isinstance(module, PWSConv2d):
        return PWS
    if isinstance(module, (ReparamConv2d, ConvWS2d, ConvAWS2d)):
        return REPARAMETRIZED
    if isinstance(module, _ConvNd):
        # torch's weight_norm and its like take the parameter away
        return PLAIN if 'weight' in module._parameters else REPARAMETRIZED
    if isinstance(module, nn.Linear):
        return LINEAR
    holds_parameters = any(True for _ in module.parameters(recurse=False))
    if holds_parameters and hasattr(module, 'kernel_size'):
        return PLAIN  # mmcv's deformable convolutions
    is_leaf = not any(True for _ in module.children())
    is_named_norm = is_leaf and 'Norm' in type(module).__name__
    if is_norm(module) or (is_named_norm and not isinstance(module, NoNorm)):
        return NORM
    return REST if holds_parameters else None


def _class_name(module: nn.Module) -> str:
    # torch gives a parametrized layer a class of its own
    bases = type(module).__mro__
    return bases[1 if is_parametrized(module) else 0].__name__


def _parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    yield from layer.parameters(recurse=False)
    if is_parametrized(layer):
        yield from layer.parametrizations.parameters()


def _measure_macs(
    model: nn.Module,
    layers: Iterable[nn.Module],
    inputs: Tensor | Mapping[str, Any] | Sequence[int],
) -> Counter[nn.Module | None]:
    """Multiply-adds of each layer, and under None those outside of all."""
    macs: Counter[nn.Module | None] = Counter()
    running: list[nn.Module | None] = [None]
    # the product of matrices in mmcv's deformable convolutions
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kw: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)

    def attribute(*_) -> None:
        done = counter.get_total_flops() // 2  # of a multiplication and an addition
        macs[running[-1]] += done - macs.total()

    def enter(layer: nn.Module, *_) -> None:
        attribute()
        running.append(layer)

    def leave(*_) -> None:
        attribute()
        running.pop()

    modes = {module: module.training for module in model.modules()}
    gpus = {p.device.index for p in model.parameters() if p.is_cuda}
    handles = []
    try:
        for module in modes:
            module.training = False
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(enter))
            handles.append(layer.register_forward_hook(leave))
        with torch.random.fork_rng(gpus), torch.no_grad(), counter:
            _forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    attribute()
    return macs


def _forward(
    model: nn.Module, inputs: Tensor | Mapping[str, Any] | Sequence[int]
) -> None:
    if isinstance(inputs, Tensor):
        model(inputs)
    elif isinstance(inputs, Mapping):
        model(**inputs)
    else:
        size = tuple(inputs)
        seeded = torch.Generator().manual_seed(0)
        image = torch.randint(256, (3, *size), generator=seeded, dtype=torch.uint8)
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        batch = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        model(**model.data_preprocessor(batch, False), mode='tensor')


def _describe_inputs(inputs: Tensor | Mapping[str, Any] | Sequence[int]) -> str:
    if isinstance(inputs, (Tensor, Mapping)):
        return 'the given input'
    return 'a random image of {} x {} pixels'.format(*inputs)


def _optimized_and_decayed(
    optimizer: Optimizer | OptimWrapper | OptimWrapperDict,
) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    groups = optimizer.param_groups
    if isinstance(groups, dict):  # of an OptimWrapperDict
        groups = [group for several in groups.values() for group in several]
    return (
        {p for group in groups for p in group['params']},
        {p for group in groups if group.get('weight_decay') for p in group['params']},
    )


def _describe_norms(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> Iterator[str]:
    norms = {name: m for name, m in modules.items() if _kind(m) == NORM}
    if not norms:
        yield 'Norm-free: no layer normalizes outputs'
        return
    yield (
        f'NOT norm-free: {len(norms)} of {len(modules)} layers normalize outputs: '
        + _few(norms)
    )
    stored = [
        norm
        for norm in norms.values()
        if not norm.training and getattr(norm, 'running_mean', None) is not None
    ]
    if stored and model.training:
        yield f'In eval mode, with running statistics: {len(stored)} of these'


def _describe_pws(
    modules: Mapping[str, nn.Module],
    alphas: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
    decayed: Collection[str] | None,
) -> Iterator[str]:
    gammas: dict[str, list[float]] = {}  # of each part of the network
    for name, module in modules.items():
        if isinstance(module, PWSConv2d):
            gammas.setdefault(name.split('.')[0], []).append(module.gamma)
    if not gammas:
        return
    parts: dict[str, list[str]] = {}
    for part, values in gammas.items():
        ends = [f'{end(values):.3g}' for end in (min, max)]
        parts.setdefault(' to '.join(dict.fromkeys(ends)), []).append(part)
    texts = (f'{values} in {_few(names)}' for values, names in parts.items())
    yield f'gamma: {"; ".join(texts)}'

    frozen = [name for name in alphas if name not in trained]
    if alphas:
        text = 'all' if not frozen else f'{_numel(trained)} of them'
        end = ', none decayed' if decayed == [] else ''
        yield f'alpha: {_numel(alphas)} values, {text} trained{end}'
    if frozen:
        yield f'Not trained: {_few(frozen)}'
    if decayed:
        yield (
            f'Weight decay pulls {len(decayed)} of {len(alphas)} alphas towards 0, '
            f'unlike in the paper: {_by_parts(decayed, alphas)}. {NO_DECAY} switches '
            'it off'
        )
    backbone = [name for name in modules if name.split('.')[0] == 'backbone']
    plain = [name for name in backbone if _kind(modules[name]) == PLAIN]
    if plain and 'backbone' in gammas:
        yield f'Plain convolutions in a backbone with PWS: {_few(plain)}'


def _numel(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(p.numel() for p in set(parameters.values()))


def _by_parts(names: Collection[str], of: Collection[str]) -> str:
    """Name the parts of the network all of whose names are there, and the others."""
    parts: dict[str, list[str]] = {}
    for name in of:
        parts.setdefault(name.split('.')[0], []).append(name)
    texts = []
    for part, whole in parts.items():
        some = [name for name in whole if name in names]
        is_all = len(some) == len(whole) > 1
        texts += [f'all {len(whole)} of {part}'] if is_all else some
    return ', '.join(texts)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join([*names[:3], '...'] if len(names) > 3 else names)


def _short(number: float) -> str:
    for unit in ('', ' K', ' M', ' G'):
        if number < 999.5:
            return f'{number:.3g}{unit}'
        number /= 1000
    return f'{number:.3g} T'
