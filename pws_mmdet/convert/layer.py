"""The records of convolutions: before their conversion, and after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.names import first_names


@dataclass
class Layer:
    """A plain convolution with a bias, before its conversion.

    Attributes:
        name: Its name in the network. A shared layer has the first of its names.
        kept: Why the layer is not converted. Empty for a layer to convert.
        called: Whether a forward pass called the layer, or none was needed.
    """

    name: str
    kept: str = ''
    called: bool = True


@dataclass
class ConvertedLayer:
    """What the conversion did with one convolution.

    Attributes:
        name: Its name in the network. A shared layer has the first of its names.
        kept: Why the layer was not converted. Empty for a converted layer.
        reason: What else is to be known. Often empty.
    """

    name: str
    kept: str = ''
    reason: str = ''

    def __str__(self) -> str:
        text = f'{self.name}: {"stays" if self.kept else "converted"}'
        reason = self.kept or self.reason
        return f'{text} ({reason})' if reason else text


class ConversionReport(list[ConvertedLayer]):
    """What a conversion did: a record of each convolution.

    Attributes:
        norms: The layers that still normalize, each as 'NAME (CLASS)'.
    """

    norms: Sequence[str] = ()

    def __str__(self) -> str:
        return '\n'.join([*map(str, self), self.summary()])

    def summary(self) -> str:
        """Say in one line what was converted, and what stays and why."""
        reasons: dict[str, list[str]] = {}
        for layer in self:
            if layer.kept:
                reasons.setdefault(layer.kept, []).append(layer.name)
        number = sum(not layer.kept for layer in self)
        text = f'{number} convolution{"s were" if number != 1 else " was"} converted'
        for reason, names in reasons.items():
            text += f'; {len(names)} not, because {reason}: {first_names(names)}'
        if self.norms:
            several = len(self.norms) > 1
            text += f'; {len(self.norms)} layer'
            text += 's still normalize: ' if several else ' still normalizes: '
            text += first_names(self.norms)
        return text
