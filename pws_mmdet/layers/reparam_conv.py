import torch
from torch import Tensor, nn

from ..arguments import check_flags, check_integers
from .sharing import filters_of

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class ReparamConv2d(nn.Conv2d):
    """A convolution that computes its filters from its parameters.

    The base of :class:`PWSConv2d` and :class:`WNConv2d`, which say how in
    ``standardized_weight()``: the filters of the equivalent plain convolution,
    gain included, in shape and dtype of ``weight``. Nothing is cached between
    forward passes; see :func:`shared_filters` for several calls in one.

    It also keeps their initialization: MMEngine's
    ``init_cfg=dict(layer='Conv2d')`` re-initializes the DIRECT subclasses of
    nn.Conv2d, and they have this class in between.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Accepted and ignored: MMDetection's blocks pass ``bias=False``
            because a norm layer follows, and a bias is needed just there.
            ``beta`` decides.
        beta: False drops the bias.

    Raises:
        TypeError: If there is no argument of a name.
        ValueError: If no convolution has such sizes or such a dtype, or the channels
            are not divisible by ``groups``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        *,
        beta: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # nn.Conv2d finds most of it in its first forward pass
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_integers(0, groups=groups)
        sizes = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
        check_integers(1, pairs=True, **sizes)
        if not isinstance(padding, str):
            check_integers(0, pairs=True, padding=padding)
        check_flags(beta=beta)
        if not isinstance(padding_mode, str):  # of a string, nn.Conv2d says it
            raise ValueError(f'padding_mode must be a string, got {padding_mode!r}')
        if dtype not in (None, *DTYPES):
            raise ValueError(f'dtype must be one of {DTYPES}, got {dtype!r}')
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                'in_channels and out_channels must be divisible by groups, got '
                f'in_channels={in_channels}, out_channels={out_channels}, '
                f'groups={groups}'
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            beta,
            padding_mode,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """The bias 0; the filters are the subclass's to initialize."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def init_weights(self) -> None:
        """Same as ``reset_parameters``.

        MMCV's ConvModule re-initializes every conv without this method.
        """
        self.reset_parameters()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        weight = state_dict.get(prefix + 'weight')
        shape = getattr(weight, 'shape', self.weight.shape)
        if shape != self.weight.shape:
            # A load that is not strict leaves the filters out. The gain that was
            # trained with them is then no gain of this layer's filters.
            for name in self._parameters.keys() - {'weight', 'bias'}:
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def expanded_bias(self) -> Tensor | None:
        """The bias of the equivalent plain convolution, (c_out,), or None."""
        return None if self.bias is None else self.bias.expand(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        filters = filters_of(self, self.standardized_weight)
        return self._conv_forward(x, filters, self.expanded_bias())

    def extra_options(self) -> str:
        """What the repr says of the subclass's own arguments."""
        return ''

    def extra_repr(self) -> str:
        text = super().extra_repr().replace(', bias=False', '') + self.extra_options()
        return text if self.bias is not None else text + ', beta=False'
