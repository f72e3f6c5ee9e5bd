"""Say as text, and as options of a config, which gammas are suggested."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGamma:
    """The gamma of a PWS layer, and the one that is suggested.

    Args:
        n: Weights in one of its filters.
        gamma: Its gamma.
        suggested: The suggested one; inf if no gamma can help.
    """

    n: int
    gamma: float
    suggested: float

    @property
    def fraction(self) -> float:
        """The suggested gamma as a fraction of the He variance 2 / n."""
        return self.suggested * self.n / 2


@dataclass(frozen=True)
class GammaSuggestion:
    """Suggested gammas for the model of a config. Its text is a table and options.

    Args:
        lr: The learning rate.
        layers: The PWS layers by name.
        parts: For each part of the config, by its key, the fraction of the He variance
            that is enough for all its layers. It is inf if no gamma can help.
        reason: Why these gammas.
        divergence: How the training ended that was watched, if it diverged.
    """

    lr: float
    layers: dict[str, LayerGamma]
    parts: dict[str, float]
    reason: str
    divergence: str | None = None

    def __str__(self) -> str:
        lines = []
        if self.divergence is not None:
            lines += [f'{self.divergence}\nThe suggestion is from the steps before.\n']
        width = max(len('layer'), *map(len, self.layers))
        lines += [f'{"layer":{width}}      n    gamma  suggested  fraction of 2/n']
        lines += [
            f'{name:{width}}  {layer.n:5}  {layer.gamma:7.2g}  {layer.suggested:9.2g}  '
            f'{layer.fraction:15.2g}'
            for name, layer in self.layers.items()
        ]
        lines += [f'\nFor a learning rate of {self.lr:g}:']
        for part, fraction in self.parts.items():
            if math.isinf(fraction):
                lines += [f'  {part}: its steps were not finite, no gamma can help']
            else:
                options = f'type=PWS gamma={fraction:.2g} relative_gamma=True'.split()
                lines += ['  ' + ' '.join(f'{part}.conv_cfg.{o}' for o in options)]
        paper = 'The paper takes 1e-3 for SSD at a rate of 1e-2, and 1e-5 at 1e-3.'
        return '\n'.join([*lines, self.reason, paper])


def fraction_of_parts(
    layers: Mapping[str, LayerGamma], model: Mapping
) -> dict[str, float]:
    """Return the largest suggested fraction in each part of a config.

    A config sets gamma for a part such as the backbone, not for a single layer.

    Args:
        layers: The PWS layers by name.
        model: The config of the model.
    """
    parts: dict[str, float] = {}
    for name, layer in layers.items():
        part = config_part(name, model)
        parts[part] = max(layer.fraction, parts.get(part, 0))
    return parts


def config_part(layer: str, model: Mapping) -> str:
    """Return the key of the part of a config that builds a layer.

    Args:
        layer: Name of the layer, such as 'backbone.conv1'.
        model: The config of the model.

    Returns:
        The key of the innermost dict with a ``type`` on the way to the layer, such as
        'model.backbone'.
    """
    key, cfg = 'model', model
    path = key
    for name in layer.split('.'):
        if isinstance(cfg, Sequence) and name.isdigit() and int(name) < len(cfg):
            cfg = cfg[int(name)]
        elif isinstance(cfg, Mapping) and isinstance(
            cfg.get(name), (Mapping, list, tuple)
        ):
            cfg = cfg[name]
        else:
            break
        path += f'.{name}'
        if isinstance(cfg, Mapping) and 'type' in cfg:
            key = path
    return key
