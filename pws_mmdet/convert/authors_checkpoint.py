"""Convert the ResNet of the paper's authors to a PWSResNet."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import check_finite, read_checkpoint, write_checkpoint
from ..models.backbones.pws_resnet import PWSResNet
from ..utils.files import check_new_path
from ..utils.names import first_names
from ..utils.repository import shown_path

# Weights that a PWSResNet does not have: the norm layers of the output feature maps in
# their detection code, which their forward pass never calls, and all parts that are no
# backbone. (neck.norm is the final norm layer of their classifier, here out_norm.)
DROPPED = re.compile(r'(gnoutputgn_\d|gnfinal|neck|head|fc|rpn_head|roi_head)\.')
# The norm layer after the stem has one name in their detection code, and another in
# their ImageNet code.
STEM_NORM = re.compile(r'^(gn1|norm1)\.')
BLOCK = re.compile(r'layer(\d+)\.(\d+)\.')


@dataclass
class OfficialBackbone:
    """A backbone of the authors, with the names that ``PWSResNet`` has.

    Args:
        depth, base_channels: Arguments of the ``PWSResNet`` that it fits.
        state_dict: The state dict of this ``PWSResNet``.
        dropped: Keys of the authors' checkpoint that are not in ``state_dict``.
    """

    depth: int
    base_channels: int
    state_dict: dict[str, Tensor]
    dropped: list[str]

    @property
    def network(self) -> str:
        """The Python expression that builds the network."""
        narrow = f', base_channels={self.base_channels}'
        return f'PWSResNet(depth={self.depth}{narrow * (self.base_channels != 64)})'

    def report(self) -> str:
        """Return a text that lists what was mapped and what was dropped."""
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
            "A checkpoint does not hold gamma: conv_cfg=dict(type='PWS', gamma=...) "
            'must be that of the training. The default 1e-4 is that of their ImageNet '
            'config; that of their `equiv` is gamma=0.1, relative_gamma=True.',
        ]
        if self.depth < PWSResNet.bottlenecks_from:
            lines.append(
                'In their code there is a ReLU before the identity path of layer1.0; '
                'in PWSResNet there is none. So a network of basic blocks computes '
                'something else until it is fine-tuned. (From depth 50 on there is a '
                'convolution on that path, and both compute the same.)'
            )
        return '\n'.join(lines)


def from_official(
    weights: Mapping[str, Tensor], source: str | Path
) -> OfficialBackbone:
    """Map a state dict of the paper authors' ResNet to ``PWSResNet``.

    Their alpha of shape (O, 1, 1, 1) gets the shape (O,). Their bias is beta. The keys
    may start with ``module.`` and ``backbone.``.

    Args:
        weights: Weights of the backbone, a classifier or a detector.
        source: Where the weights are from, for messages.

    Raises:
        ValueError: If the weights are of another kind of network, or not of a ResNet
            of depth 18, 34, 50, 101 or 152; if a key is unknown or missing, a shape
            is wrong, or a value is NaN or infinite.

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
            raise ValueError(f'{source} has {name} twice: {key} is the second one')
        found[name] = value

    _check_kind(found, source)
    depth = _depth_of(found, source)
    stem = found.get('gn1.weight')
    base_channels = 64 if stem is None else stem.numel()
    with torch.device('meta'):  # names and shapes, without values
        target = PWSResNet(depth, base_channels=base_channels).state_dict()
    official = OfficialBackbone(depth, base_channels, {}, dropped)
    _check_fit(found, target, f'{source} does not fit {official.network}')
    check_finite(found, source)
    official.state_dict = {
        name: found[name].detach().reshape(value.shape)
        for name, value in target.items()
    }
    return official


def convert_authors_checkpoint(
    checkpoint: str | Path, out: str | Path
) -> OfficialBackbone:
    """Write the pretrained weights of a PWSResNet from the authors' checkpoint.

    Args:
        checkpoint: A checkpoint of the authors' detection or ImageNet code, of the
            whole network or of its backbone.
        out: The new file, *.pth. It holds the weights of the backbone only.

    Returns:
        What was written and what was not.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it does not fit (see ``from_official``), or ``out`` does not
            end in .pth.
        FileExistsError: If ``out`` exists.
        OSError: If it cannot be written.
    """
    check_new_path(out, '.pth')
    backbone = from_official(read_checkpoint(checkpoint).weights, checkpoint)
    write_checkpoint(dict(state_dict=backbone.state_dict), out)
    return backbone


def _check_kind(weights: Mapping[str, Tensor], source: str | Path) -> None:
    if any(key.endswith('.running_mean') for key in weights):
        raise ValueError(
            f'{source} is of a network with BN (it has running_mean): '
            'pws-convert is for that'
        )
    alphas = [value for key, value in weights.items() if key.endswith('.alpha')]
    if not alphas:
        raise ValueError(f'{source} is not of a PWS network: no key is named *.alpha')
    if all(alpha.dim() == 1 for alpha in alphas):
        raise ValueError(
            f'{source} is in the layout of pws_mmdet already (alpha has one axis). '
            'Use it as it is, or take the backbone out of a classifier with '
            + shown_path('tools/model_converters/publish_backbone.py')
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
        f'{source} has stages of {numbers} {kind}, but no ResNet of the depths '
        f'{depths} has these'
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
        f'{len(names)} {what}: {first_names(names)}'
        for what, names in errors.items()
        if names
    ]
    if parts:
        raise ValueError(f'{message}. {"; ".join(parts)}')
