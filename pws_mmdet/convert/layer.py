"""The records of convolutions: before their conversion, and after it."""

from dataclasses import dataclass

from torch import Tensor

from ..utils.names import first_names
from .agreement import Agreement

Filters = tuple[Tensor, Tensor]  # filters (O, c_in / groups, k, k) and bias (O,)


@dataclass
class Layer:
    """A plain convolution with a bias, before its conversion.

    Attributes:
        name: Its name in the network. A shared layer has the first of its names.
        mean: Mean of the outputs without the bias, (O,). None if there were no BN
            statistics.
        std: Standard deviation of the outputs, (O,), or None like ``mean``.
        kept: Why the layer is not converted. Empty for a layer to convert.
        scales: Whether the channels of a layer that is not converted may be scaled.
        called: Whether a forward pass called the layer, or none was needed.
    """

    name: str
    mean: Tensor | None = None
    std: Tensor | None = None
    kept: str = ''
    scales: bool = False
    called: bool = True

    def divide(self, scale: Tensor) -> None:
        """Divide mean and standard deviation by a scale of each channel, (O,)."""
        if self.mean is not None and self.std is not None:
            self.mean, self.std = self.mean / scale, self.std / scale


@dataclass
class ConvertedLayer:
    """What the conversion did with one convolution.

    Attributes:
        name: Its name in the network. A shared layer has the first of its names.
        method: How the zero-mean filters were found.

            - ``'fitted'``: fitted to the outputs of the original network.
            - ``'local'``: fitted to the outputs of the layer's own original filters
              on the inputs that the converted network gives it.
            - ``'statistics'``: without images, from the running statistics of BN.
            - ``'mean'``: without images and without statistics. Each filter lost its
              mean.
            - ``'kept'``: not converted.
        error: Relative error of the outputs: the root mean squared error divided by
            the standard deviation, on images that the filters were not fitted to.
            None without images.
        loss: The part of the error that zero-mean filters would add, or add, as
            ``max_loss`` of ConversionOptions defines it. None if it is not known.
        reason: Why the layer was not converted, or was converted without looking at
            its outputs. Else empty.
    """

    name: str
    method: str
    error: float | None = None
    reason: str = ''
    loss: float | None = None

    def __str__(self) -> str:
        text = f'{self.name}: {self.method}'
        if self.error is not None:
            text += f', relative error {self.error:.3f}'
        if self.loss is not None:
            text += f', zero mean costs {self.loss:.3f}'
        return f'{text} ({self.reason})' if self.reason else text


class ConversionReport(list[ConvertedLayer]):
    """What a conversion did: a record of each convolution, in the order of conversion.

    Attributes:
        agreement: How well the outputs agree with those of the original network; None
            without images.
        images: The images of ``agreement``, in words.
    """

    agreement: Agreement | None = None
    images: str = ''

    def __str__(self) -> str:
        return '\n'.join([*map(str, self), self.summary()])

    def summary(self) -> str:
        """Say in one line what was converted, what stays plain, and what is lost."""
        plain = [layer for layer in self if layer.method == 'kept']
        text = f'{len(self) - len(plain)} convolutions were converted'
        reasons: dict[str, list[str]] = {}
        for layer in plain:
            reasons.setdefault(layer.reason, []).append(layer.name)
        for reason, names in reasons.items():
            text += f'; {len(names)} not, because {reason}: {first_names(names)}'
        if self.agreement is None:
            return f'{text}. Without images it is not known how good the network is'
        return f'{text}. On {self.images}, {self.agreement}'
