"""What a model is made of: kinds of layers, their parameters and multiply-adds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer

from ..layers import PWSConv2d
from ..utils.config import build_for_training, find_image_size, read_config
from ..utils.model import unwrap_model
from .layer_kinds import KINDS, REST, class_name, find_layers, kind_of, parameters_of
from .macs import Inputs, describe_inputs, measure_macs
from .model_findings import count_values, describe_norms, describe_pws

TOTAL = 'total'


@dataclass(frozen=True)
class LayerSummary:
    """A module that holds parameters of its own, or normalizes.

    Args:
        name: Its name in the model, the first one if it has several.
        type: Its class.
        kind: One of ``KINDS``.
        parameters: Number of values in its parameters. A shared parameter counts for
            the first layer that holds it.
        frozen: Whether it has parameters and none of them requires a gradient.
        macs: Multiply-adds in one forward pass, summed over all calls of the layer.
            None if they were not measured.
    """

    name: str
    type: str
    kind: str
    parameters: int
    frozen: bool
    macs: int | None


@dataclass(frozen=True)
class Composition:
    """What a model is made of. Its string is a table and the findings.

    Args:
        layers: Its layers, in the order of ``named_modules()``.
        other_macs: Multiply-adds outside of all layers, None if they were not
            measured.
        alphas: Number of alphas in the PWS convolutions.
        trained_alphas: Number of these that are trained.
        decayed_alphas: Names of the parameters alpha that weight decay pulls towards
            0, None if no optimizer was given.
        findings: Sentences that tell what is unusual, or worth knowing.
    """

    layers: list[LayerSummary]
    other_macs: int | None
    alphas: int
    trained_alphas: int
    decayed_alphas: list[str] | None
    findings: list[str]

    def kinds(self) -> list[dict[str, Any]]:
        """Return the rows of the table: one for each of ``KINDS``, then the total.

        ``types`` counts the layers of each class. ``macs`` is None if they were not
        measured. Multiply-adds outside of all layers belong to 'the rest'.
        """
        rows = []
        for kind in (*KINDS, TOTAL):
            layers = [layer for layer in self.layers if kind in (layer.kind, TOTAL)]
            macs = self.other_macs
            if macs is not None:
                macs = macs if kind in (REST, TOTAL) else 0
                macs += sum(layer.macs or 0 for layer in layers)
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
            lines[0] += [title, '']  # The column of percentages has no title.
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
    inputs: Inputs | None = None,
    optimizer: Optimizer | OptimWrapper | OptimWrapperDict | None = None,
) -> Composition:
    """Say what a model is made of.

    A layer normalizes if it is a BN, GN, LN, IN or a similar layer, or if it has no
    children and its class has 'Norm' in its name. ``NoNorm`` does not normalize.
    Functions that normalize are not found.

    Multiply-adds (MACs) are half of what PyTorch's FlopCounterMode counts in a forward
    pass: those of convolutions and of matrix products, each time that a layer is
    called. Biases, normalization, activations and fused attention kernels do not
    count. Neither does the computation of PWS filters, which costs O(parameters). The
    pass runs in eval mode. The model and PyTorch's random numbers are the same
    afterwards.

    Args:
        model: Any module, also one that is wrapped for distributed training. Findings
            about eval mode are about the mode that it is in.
        inputs: What to measure the multiply-adds with. It is an input tensor, the
            keyword arguments of ``forward``, or, for a model of MMDetection, the
            height and width of an image in pixels. The image is random, and the model
            pads it as in a test. A second stage sees the proposals that the first
            stage finds in it. None measures nothing.
        optimizer: Tells which alphas are trained, and which are decayed.

    Returns:
        The composition. If the forward pass fails, it has no multiply-adds, and its
        last finding gives the reason.
    """
    model = unwrap_model(model)
    layers = find_layers(model)
    macs, note = None, []
    if inputs is not None:
        try:
            macs = measure_macs(model, layers.values(), inputs)
            note = [f'MACs: a forward pass of {describe_inputs(inputs)}']
        except Exception as e:  # A model may raise anything.
            reason = shorten(f'{type(e).__name__}: {e}', 400)
            note = [f'MACs: no forward pass of {describe_inputs(inputs)}: {reason}']

    alphas = {
        f'{name}.alpha': layer.alpha
        for name, layer in layers.items()
        if isinstance(layer, PWSConv2d) and layer.alpha is not None
    }
    trained = {name: p for name, p in alphas.items() if p.requires_grad}
    decayed = None
    if optimizer is not None:
        optimized, pulled = _optimized_and_decayed(optimizer)
        trained = {name: p for name, p in trained.items() if p in optimized}
        decayed = [name for name, p in trained.items() if p in pulled]
    return Composition(
        layers=_summarize_layers(layers, macs),
        other_macs=None if macs is None else macs[None],
        alphas=count_values(alphas),
        trained_alphas=count_values(trained),
        decayed_alphas=decayed,
        findings=[
            *describe_norms(model, layers),
            *describe_pws(layers, alphas, trained, decayed),
            *note,
        ],
    )


def summarize_config(
    config: str,
    cfg_options: Mapping | None = None,
    shape: Sequence[int] | None = None,
    macs: bool = True,
) -> Composition:
    """Say what the model of a config is made of.

    The weights are random. No checkpoint and no data are read.

    Args:
        config: Path of a config, or an installed one, as in 'mmdet::FOLDER/NAME.py'.
        cfg_options: Changes to the config, as of ``--cfg-options``.
        shape: Height and width of the image in pixels. By default it is the size to
            which the config's test pipeline resizes.
        macs: Count multiply-adds.

    Raises:
        ValueError: If the config cannot be read, if its model or optimizer cannot be
            built, if the image size is unknown, or if the model does not take images
            of ``shape``.
    """
    cfg = read_config(config, cfg_options)
    size = (shape or find_image_size(cfg)) if macs else None
    if macs and size is None:
        raise ValueError(
            f'{config} has no Resize with a scale in its test pipeline: give --shape '
            'or --no-macs'
        )
    model, optimizer = build_for_training(config, cfg)
    composition = summarize_model(model, size, optimizer)
    if shape and macs and composition.other_macs is None:
        raise ValueError(composition.findings[-1])
    return composition


def _summarize_layers(
    layers: Mapping[str, nn.Module], macs: Mapping[nn.Module | None, int] | None
) -> list[LayerSummary]:
    summaries = []
    seen: set[nn.Parameter] = set()
    for name, layer in layers.items():
        parameters = set(parameters_of(layer))
        summary = LayerSummary(
            name=name,
            type=class_name(layer),
            kind=kind_of(layer),  # type: ignore[arg-type]
            parameters=sum(p.numel() for p in parameters - seen),
            frozen=bool(parameters) and not any(p.requires_grad for p in parameters),
            macs=None if macs is None else macs[layer],
        )
        summaries.append(summary)
        seen |= parameters
    return summaries


def _optimized_and_decayed(
    optimizer: Optimizer | OptimWrapper | OptimWrapperDict,
) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Return the parameters in an optimizer, and those with a weight decay."""
    groups = optimizer.param_groups
    if isinstance(groups, dict):  # It is an OptimWrapperDict.
        groups = [group for several in groups.values() for group in several]
    return (
        {p for group in groups for p in group['params']},
        {p for group in groups if group.get('weight_decay') for p in group['params']},
    )


def _short(number: float) -> str:
    for unit in ('', ' K', ' M', ' G'):
        if number < 999.5:
            return f'{number:.3g}{unit}'
        number /= 1000
    return f'{number:.3g} T'
