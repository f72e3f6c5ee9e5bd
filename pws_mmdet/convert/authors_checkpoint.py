"""The ResNet of the paper's authors into a PWSResNet."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.weights import check_finite
from ..models.backbones.pws_resnet import PWSResNet

# The norm layers of the output maps in their detection code, which are never used, and
# what else a classifier or a detector has. (neck.norm is the final norm layer of their
# classifier, out_norm here.)
DROPPED = re.compile(r'(gnoutputgn_\d|gnfinal|neck|head|fc|rpn_head|roi_head)\.')
# The norm layer after the stem, in their detection and in their ImageNet code.
STEM_NORM = re.compile(r'^(gn1|norm1)\.')
BLOCK = re.compile(r'layer(\d+)\.(\d+)\.')
SHOWN = 4


@dataclass
class OfficialBackbone:
    """A backbone of the authors by its names in :class:`PWSResNet`.

    Args:
        depth, base_channels: Of the ``PWSResNet`` that it is.
        state_dict: All that a ``PWSResNet`` has, and nothing else.
        dropped: The names that were left out.
    """

    depth: int
    base_channels: int
    state_dict: dict[str, Tensor]
    dropped: list[str]

    @property
    def network(self) -> str:
        """How to build the network, as text."""
        narrow = f', base_channels={self.base_channels}'
        return f'PWSResNet(depth={self.depth}{narrow * (self.base_channels != 64)})'

    def report(self) -> str:
        """What was mapped and what was dropped: numbers and names."""
        mapped = Counter(name.split('.')[0] for name in self.state_dict)
        modules = dict.fromkeys(name.rpartition('.')[0] for name in self.dropped)
        lines = [
            f'network: {self.network}',
            f'mapped:  {len(self.state_dict)} tensors: '
            + ', '.join(f'{part} {number}' for part, number in mapped.items()),
            f'dropped: {len(self.dropped)} tensors'
            + ': ' * bool(modules)
            + ', '.join(f'{module}.*' for module in modules),
            'missing: 0 tensors',
            "gamma is in no checkpoint: conv_cfg=dict(type='PWS', gamma=...) must be "
            'that of the training. The default 1e-4 is that of their ImageNet config; '
            'that of their `equiv` is gamma=0.1, relative_gamma=True.',
        ]
        if self.depth < PWSResNet.bottlenecks_from:
            lines.append(
                'In their code a ReLU precedes the identity path of layer1.0, in '
                'PWSResNet it does not: a network of basic blocks computes something '
                'else until it is fine-tuned. (From depth 50 on there is a '
                'convolution on that path, and both compute the same.)'
            )
        return '\n'.join(lines)


def from_official(
    weights: Mapping[str, Tensor], source: str | Path
) -> OfficialBackbone:
    """Map a state dict of the paper authors' ResNet onto :class:`PWSResNet`.

    Their alpha of shape (O, 1, 1, 1) becomes one of (O,); their bias is beta. The
    names may start with ``module.`` and ``backbone.``.

    Args:
        weights: Of the backbone alone, a classifier or a detector.
        source: Where they are from, for the messages.

    Raises:
        ValueError: If the weights are of another kind of network, or of no ResNet of
            depth 18, 34, 50, 101 or 152, or if a name is unknown or missing, a shape
            is another, or a value is NaN or infinite.

    Source: the detection and the ImageNet code of the paper's authors.
    """
    found: dict[str, Tensor] = {}
    dropped = []
    for key, value in weights.items():
        name = key.removeprefix('module.').removeprefix('backbone.')
        if DROPPED.match(name):
            dropped.append(key)
            continue
        name = STEM_NORM.sub('gn1.', name)
        if name in found:
            raise ValueError(f'{source} has {name} twice, {key} is the second one')
        found[name] = value

    _check_kind(found, source)
    depth = _depth_of(found, source)
    stem = found.get('gn1.weight')
    base_channels = 64 if stem is None else stem.numel()
    with torch.device('meta'):  # names and shapes alone
        target = PWSResNet(depth, base_channels=base_channels).state_dict()
    official = OfficialBackbone(depth, base_channels, {}, dropped)
    _check_fit(found, target, f'{source} does not fit {official.network}')
    check_finite(found, source)
    official.state_dict = {
        name: found[name].detach().reshape(value.shape)
        for name, value in target.items()
    }
    return official


def _check_kind(weights: Mapping[str, Tensor], source: str | Path) -> None:
    if any(key.endswith('.running_mean') for key in weights):
        raise ValueError(
            f'{source} is of a network with BN (it has running_mean): '
            'tools/model_converters/bn_to_pws.py is for that'
        )
    alphas = [value for key, value in weights.items() if key.endswith('.alpha')]
    if not alphas:
        raise ValueError(f'{source} is of no PWS network: nothing is named *.alpha')
    if all(alpha.dim() == 1 for alpha in alphas):
        raise ValueError(
            f'{source} is in the layout of pws_mmdet already (alpha has one axis): '
            'use it as it is, or take the backbone of a classifier out of it with '
            'tools/model_converters/publish_backbone.py'
        )


def _depth_of(found: Mapping[str, Tensor], source: str | Path) -> int:
    blocks: dict[int, int] = {}
    for match in filter(None, map(BLOCK.match, found)):
        stage, block = int(match[1]), int(match[2])
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    numbers = tuple(blocks[stage] for stage in sorted(blocks))
    has_bottlenecks = any('.conv3.' in name for name in found)
    for depth, blocks_per_stage in PWSResNet.blocks_per_stage.items():
        if (numbers, has_bottlenecks) == (
            blocks_per_stage,
            depth >= PWSResNet.bottlenecks_from,
        ):
            return depth
    kind = 'bottlenecks' if has_bottlenecks else 'basic blocks'
    depths = ', '.join(map(str, PWSResNet.blocks_per_stage))
    raise ValueError(
        f'{source} has stages of {numbers} {kind}, which is a ResNet of none of the '
        f'depths {depths}'
    )


def _check_fit(
    found: Mapping[str, Tensor], target: Mapping[str, Tensor], message: str
) -> None:
    expected = {
        name: tuple(value.shape) + (1, 1, 1) * name.endswith('.alpha')
        for name, value in target.items()
    }
    errors = {
        'missing': [name for name in expected if name not in found],
        'unknown': [name for name in found if name not in expected],
    }
    if not any(errors.values()):
        errors['of another shape'] = [
            f'{name} {tuple(found[name].shape)} instead of {shape}'
            for name, shape in expected.items()
            if found[name].shape != shape
        ]
    parts = [
        f'{len(names)} {what}: {", ".join(names[:SHOWN])}'
        + ', ...' * (len(names) > SHOWN)
        for what, names in errors.items()
        if names
    ]
    if parts:
        raise ValueError(f'{message}. {"; ".join(parts)}')
