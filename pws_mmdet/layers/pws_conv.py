import sys
from numbers import Real

from mmengine.registry import MODELS
from torch import Tensor, fx, nn

from ..utils.arguments import check_flags, check_names
from .reparam_conv import ReparamConv2d
from .standardize import standardize_weight

ALPHA_MODES = ('channel', 'layer', 'fixed')

fx.wrap('standardize_weight')  # symbolic traces hold the call, not the formula


@MODELS.register_module(name=['PWS', 'PWSConv', 'PWSConv2d'], force=True)
class PWSConv2d(ReparamConv2d):
    r"""2D convolution with Parametric Weights Standardization (PWS).

    .. math:: Y_o = \alpha_o\, X \otimes \hat W_o + \beta_o

    with the filters of :func:`standardize_weight`. beta is the ``bias`` of the
    layer. Apart from its filters it is an ``nn.Conv2d``: the same input
    (N, c_in, H, W) and output (N, c_out, H', W'), attributes and padding modes.
    The filters are computed from the parameters in every forward pass and nothing
    outlives it, so that parameters may be changed in any way at any time.

    The parameters start as in the paper: W He normal (fan_in), alpha 1, beta 0.
    alpha should not be decayed: ``optim_wrapper =
    dict(constructor='PWSOptimWrapperConstructor')``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Accepted and ignored: MMDetection's blocks pass ``bias=False``
            because a norm layer follows, and beta is needed just there.
            ``beta`` decides.
        gamma: Added to the variance of each filter; > 0. The paper takes 1e-3
            for a learning rate of 1e-2 and 1e-5 for one of 1e-3 (SSD), 1e-4
            (ResNet).
        relative_gamma: Take gamma as a fraction of the He variance: the layer's
            gamma is ``gamma * 2 / n``, n = k * k * in_channels / groups.
        scale: Multiply the filters by sqrt(2 / n). False is a row of Table 2.
        alpha: 'channel' for an alpha of shape (c_out,), 'layer' for one alpha
            and one beta of shape (1,) (the predictors of SSD), 'fixed' for none
            (alpha is 1; a row of Table 2).
        beta: False drops the bias.

    Raises:
        TypeError: If there is no argument of a name.
        ValueError: If gamma is not a positive finite number, a filter has a
            single weight, the alpha mode is unknown, or it is no convolution (see
            :class:`ReparamConv2d`).

    Source: equation (12); "Parameter gamma"; Tables 1 and 2.
    """

    def __init__(
        self,
        *args,
        gamma: float = 1e-4,
        relative_gamma: bool = False,
        scale: bool = True,
        alpha: str = 'channel',
        **kwargs,
    ) -> None:
        check_names(type(self), kwargs, passes_kwargs_on=True)
        check_flags(relative_gamma=relative_gamma, scale=scale)
        if alpha not in ALPHA_MODES:
            raise ValueError(f'alpha must be one of {ALPHA_MODES}, got {alpha!r}')
        if isinstance(gamma, bool) or not isinstance(gamma, Real):
            raise ValueError(f'gamma must be a positive number, got {gamma!r}')
        if not 0 < gamma <= sys.float_info.max:  # integers may be larger
            raise ValueError(f'gamma must be positive and finite, got {gamma}')
        # nn.Conv2d calls reset_parameters before alpha can exist
        super().__init__(*args, **kwargs)
        n = self.weight[0].numel()
        if n < 2:
            raise ValueError(
                'kernel_size * in_channels / groups must leave at least 2 weights '
                'per filter, or it has no variance; got '
                f'kernel_size={self.kernel_size}, in_channels={self.in_channels}, '
                f'groups={self.groups}'
            )
        self.gamma = float(gamma) * (2 / n if relative_gamma else 1)
        self.scale = scale
        self.alpha_mode = alpha
        per_layer = alpha == 'layer'
        if per_layer and self.bias is not None:
            self.bias = nn.Parameter(self.weight.new_zeros(1))
        if alpha == 'fixed':
            self.register_parameter('alpha', None)
        else:
            size = 1 if per_layer else self.out_channels
            self.alpha = nn.Parameter(self.weight.new_ones(size))

    def reset_parameters(self) -> None:
        """W He normal (fan_in), alpha 1, beta 0."""
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight, mode='fan_in', nonlinearity='relu')
        if getattr(self, 'alpha', None) is not None:
            nn.init.ones_(self.alpha)

    def effective_weight(self) -> Tensor:
        """The filters of the equivalent plain convolution, alpha included.

        Returns:
            Shape and dtype of ``weight``.
        """
        if self.deployed:
            return self.weight
        return standardize_weight(self.weight, self.alpha, self.gamma, self.scale)

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ) -> None:
        # The checkpoints of the paper's authors hold alpha as (O, 1, 1, 1).
        alpha = state_dict.get(prefix + 'alpha')
        if self.alpha is not None and alpha is not None:
            if alpha.numel() == self.alpha.numel():
                state_dict[prefix + 'alpha'] = alpha.reshape(self.alpha.shape)
        if self.alpha is not None and alpha is None and f'{prefix}weight' in state_dict:
            # BN beside this layer that the network has no place for. MMEngine would
            # only warn of it, and the network compute something else.
            beside = prefix[:-1].rpartition('.')[0]
            for key in unexpected:
                norm, _, name = key.rpartition('.')
                if name == 'running_mean' and norm.rpartition('.')[0] == beside:
                    raise ValueError(
                        'these are the weights of a network with BN, and this one has '
                        f'PWS in {prefix[:-1]}. tools/model_converters/bn_to_pws.py '
                        'converts them'
                    )
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def extra_options(self) -> str:
        options = f', gamma={self.gamma:g}'
        if not self.scale:
            options += ', scale=False'
        if self.alpha_mode != 'channel':
            options += f", alpha='{self.alpha_mode}'"
        return options
