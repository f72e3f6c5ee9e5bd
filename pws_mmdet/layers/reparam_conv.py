from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..utils.arguments import check_flags, check_integers
from .sharing import filters_of

Convolution = TypeVar('Convolution', bound=nn.Conv2d)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def conv_like(
    conv: nn.Conv2d, of_type: type[Convolution] = nn.Conv2d, **options: Any
) -> Convolution:
    """Make a convolution of another type, with the same sizes, device and dtype.

    Args:
        conv: The convolution.
        of_type: A class that takes the arguments of ``nn.Conv2d``.
        **options: More arguments for it.
    """
    arguments: Any = (
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride),
        *(conv.padding, conv.dilation, conv.groups),
    )
    options.setdefault('device', conv.weight.device)
    options.update(padding_mode=conv.padding_mode, dtype=conv.weight.dtype)
    return of_type(*arguments, **options)


def makes_parameter(hook: Any) -> bool:
    """Tell whether a hook belongs to torch.nn.utils.prune or weight_norm."""
    return hasattr(hook, 'apply_mask') or hasattr(hook, 'compute_weight')


def own_forward(conv: nn.Conv2d) -> str | None:
    """Find a method by which a layer computes more than a convolution.

    It may be overridden in a subclass or set on the layer itself. Another
    ``effective_weight`` does not count: the layer stays a convolution.

    Returns:
        A phrase that names the method; None if there is none.
    """
    for name, usual in (
        ('forward', ReparamConv2d.forward),
        ('_conv_forward', nn.Conv2d._conv_forward),
        ('__call__', nn.Module.__call__),
    ):
        ours = vars(conv).get(name, getattr(type(conv), name))
        while hasattr(ours, '_torchdynamo_orig_callable'):  # from torch.compile
            ours = ours._torchdynamo_orig_callable
        is_usual = getattr(ours, '__func__', ours) is usual
        if not is_usual or getattr(ours, '__self__', conv) is not conv:
            return f'a {name} of its own'
    return None


class ReparamConv2d(nn.Conv2d):
    """A convolution that computes its filters from its parameters.

    The base class of ``PWSConv2d``, ``WNConv2d`` and ``ScaledWSConv2d``. A subclass
    implements ``effective_weight()``. It returns the filters of the equivalent plain
    convolution, gain included, in shape and dtype of ``weight``. Nothing is kept
    between forward passes. ``shared_filters`` is for a layer that one forward pass
    calls several times.

    The class also protects the initialization of the subclasses: MMEngine's
    ``init_cfg=dict(layer='Conv2d')`` re-initializes nn.Conv2d and its direct
    subclasses only.

    Args:
        in_channels, out_channels, kernel_size, stride: As of ``nn.Conv2d``.
        padding, dilation, groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Ignored; ``beta`` decides. MMDetection's blocks pass ``bias=False``
            because a norm layer follows, and this layer needs a bias in exactly
            these blocks.
        beta: False drops the bias.

    Raises:
        TypeError: If an argument has an unknown name.
        ValueError: If a size or the dtype is not one of a convolution, or the channels
            are not divisible by ``groups``.
    """

    deployed = False  # True after switch_to_deploy: ``weight`` holds the filters

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        beta: bool = True,
    ) -> None:
        # nn.Conv2d itself raises for most of these only in its first forward pass.
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_integers(0, groups=groups)
        sizes = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
        check_integers(1, pairs=True, **sizes)
        if not isinstance(padding, str):
            check_integers(0, pairs=True, padding=padding)
        check_flags(beta=beta)
        if not isinstance(padding_mode, str):  # nn.Conv2d itself refuses a wrong string
            raise ValueError(f'padding_mode must be a string, got {padding_mode!r}')
        if dtype not in (None, *DTYPES):
            raise ValueError(f'dtype must be one of {DTYPES}, got {dtype!r}')
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                'in_channels and out_channels must be divisible by groups, got '
                f'in_channels={in_channels}, out_channels={out_channels}, '
                f'groups={groups}'
            )
        rest: Any = (groups, beta, padding_mode, device, dtype)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, *rest
        )

    def reset_parameters(self) -> None:
        """Set the bias to 0. A subclass initializes the filters."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def check_has_variance(self) -> None:
        """Check that filters can be standardized.

        Raises:
            ValueError: If a filter has a single weight.
        """
        if self.weight[0].numel() < 2:
            raise ValueError(
                'kernel_size * in_channels / groups must leave at least 2 weights '
                'per filter, or it has no variance; got '
                f'kernel_size={self.kernel_size}, in_channels={self.in_channels}, '
                f'groups={self.groups}'
            )

    def init_weights(self) -> None:
        """Call ``reset_parameters``.

        MMCV's ConvModule re-initializes every convolution without this method.
        """
        self.reset_parameters()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        others = {*self._parameters, *self._buffers} - {'weight', 'bias'}
        if self.deployed and any(prefix + name in state_dict for name in others):
            raise ValueError(
                f'{prefix[:-1] or "the layer"} has become a plain convolution '
                '(switch_to_deploy), and these weights are of the '
                f'{type(self).__name__} that it was'
            )
        weight = state_dict.get(prefix + 'weight')
        shape = getattr(weight, 'shape', self.weight.shape)
        if shape != self.weight.shape:
            # With strict=False these filters are not loaded. Then do not load the
            # gain either: it was trained with the filters that are left out.
            for name in others:
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def expanded_bias(self) -> Tensor | None:
        """Return the bias of the equivalent plain convolution, (c_out,), or None."""
        return None if self.bias is None else self.bias.expand(self.out_channels)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the plain convolution that computes what this layer does.

        Returns:
            A new ``nn.Conv2d`` whose parameters have no gradient history. They have
            the dtype and device of this layer's. The weight requires a gradient if a
            parameter of the filters does, the bias if the bias does. Hooks are not
            copied.

        Raises:
            TypeError: If the layer computes more than a convolution.
        """
        if reason := own_forward(self):
            raise TypeError(
                f'a {type(self).__name__} with {reason} is no plain convolution'
            )
        for hook in self._forward_pre_hooks.values():
            if makes_parameter(hook):
                # The parameter is as old as the last pass: compute it again.
                hook(self, ())
        # On the meta device nn.Conv2d draws no random numbers.
        plain: nn.Conv2d = conv_like(self, bias=self.bias is not None, device='meta')
        # Look for a part of the name: a pruned bias is the parameter bias_orig.
        trained = [name for name, p in self.named_parameters() if p.requires_grad]
        filters = torch.empty_like(self.weight)  # keeps channels_last
        filters.copy_(self.weight if self.deployed else self.effective_weight())
        plain.weight = nn.Parameter(filters, any('bias' not in n for n in trained))
        if (bias := self.expanded_bias()) is not None:
            plain.bias = nn.Parameter(
                bias.clone(), any('bias' in name for name in trained)
            )
        return plain.train(self.training)

    def switch_to_deploy(self) -> None:
        """Become a plain convolution in place, as MMYOLO's deployment expects.

        ``weight`` and ``bias`` become those of ``fuse``, and all other parameters
        and buffers are removed. The state dict is then that of an ``nn.Conv2d``, and
        functions that fold BN into ``weight`` give the right result. The layer keeps
        its class and its hooks. It cannot be switched back, and weights that were saved
        before do not load any more.

        Raises:
            ValueError: If a parameter is pruned, or parametrized by
                torch.nn.utils.parametrize.
        """
        if self.deployed:
            return
        hooks = self._forward_pre_hooks.values()
        if is_parametrized(self) or any(makes_parameter(hook) for hook in hooks):
            raise ValueError(
                'a parameter is pruned or parametrized, remove that first: '
                'torch.nn.utils.prune.remove, parametrize.remove_parametrizations'
            )
        plain = self.fuse()
        for kind in (self._parameters, self._buffers):
            for name in kind:
                kind[name] = None
        self.weight, self.bias = plain.weight, plain.bias
        self.deployed = True

    def filters_to_convolve_with(self) -> Tensor:
        """``effective_weight()``, maybe already in the dtype of autocast."""
        return self.effective_weight()

    def forward(self, x: Tensor) -> Tensor:
        if self.deployed:
            return self._conv_forward(x, self.weight, self.bias)
        filters = filters_of(self, self.filters_to_convolve_with)
        return self._conv_forward(x, filters, self.expanded_bias())

    def extra_options(self) -> str:
        """Return the subclass's own arguments for the repr."""
        return ''

    def extra_repr(self) -> str:
        text = super().extra_repr().replace(', bias=False', '') + self.extra_options()
        text += '' if self.bias is not None else ', beta=False'
        return text + ', deployed=True' * self.deployed
