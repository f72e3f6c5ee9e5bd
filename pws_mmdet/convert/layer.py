"""The records of one convolution: before its conversion, and after it."""

from dataclasses import dataclass

from torch import Tensor

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
    """

    name: str
    mean: Tensor | None = None
    std: Tensor | None = None
    kept: str = ''
    scales: bool = False

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
        reason: Why the layer was not converted. Empty for a converted layer.
    """

    name: str
    method: str
    error: float | None = None
    reason: str = ''

    def __str__(self) -> str:
        error = '' if self.error is None else f', relative error {self.error:.3f}'
        return f'{self.name}: {self.method}{error}' + (
            f' ({self.reason})' if self.reason else ''
        )
