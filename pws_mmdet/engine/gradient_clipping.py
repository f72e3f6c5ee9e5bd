"""Adaptive gradient clipping (AGC) as an optimizer wrapper."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from ..utils.arguments import check_names, check_positive


@torch.no_grad()
def clip_grad_adaptively_(
    parameters: Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3
) -> Tensor:
    r"""Clip each unit's gradient G to a fraction of the unit's weights W, in place.

    $$G_i \leftarrow \lambda \frac{\max(\lVert W_i \rVert, \epsilon)}{\lVert G_i \rVert}
    G_i \quad\text{if}\quad
    \lVert G_i \rVert > \lambda \max(\lVert W_i \rVert, \epsilon)$$

    A unit is a slice along the first axis: a filter of a convolution, a row of a linear
    layer, an input channel of a transposed convolution. Parameters without a gradient,
    and those with at most one axis (biases, gains and norm layers), are left as they
    are. Norms are computed in fp32 at least.

    Args:
        parameters: The parameters of any shapes.
        clipping: lambda, the largest ratio of the two norms.
        eps: The least norm of a unit's weights, so that units of zeros can learn.

    Returns:
        The share of the units that were clipped, a scalar. 0 if there are no units.

    Source: Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
    Normalization", equation (3).
    """
    clipped = []
    for p in parameters:
        if p.grad is None or p.dim() < 2:
            continue
        most = clipping * unit_norms(p).clamp(min=eps)
        scale = (most / unit_norms(p.grad)).clamp(max=1)
        p.grad.mul_(scale.view(-1, *[1] * (p.dim() - 1)).to(p.grad.dtype))
        clipped.append(scale < 1)
    if not clipped:
        return torch.zeros(())
    return torch.cat([c.to(clipped[0].device) for c in clipped]).float().mean()


def unit_norms(values: Tensor) -> Tensor:
    """Return the norm of each slice (O, ...) along the first axis, (O,), in fp32."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=dtype)


class _AdaptiveClipping(OptimWrapper):
    """A mixin for optimizer wrappers: AGC where they clip gradients.

    They clip right before the step, when AmpOptimWrapper has undone the scale of the
    loss, and only if ``clip_grad_kwargs`` is not empty.
    """

    def __init__(
        self,
        *args: Any,
        agc: dict | None = None,
        clip_grad: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, clip_grad=clip_grad and dict(clip_grad), **kwargs)
        agc = dict(agc or {})
        check_names(clip_grad_adaptively_, set(agc) - {'exclude'})
        exclude = agc.pop('exclude', ())
        check_positive(**{f'agc.{name}': value for name, value in agc.items()})
        self.agc = agc
        self.exclude: Sequence[str] = [exclude] if isinstance(exclude, str) else exclude
        self._excluded: Collection[Tensor] | None = None if self.exclude else ()
        if self.clip_grad_kwargs:
            self._then_clip = self.clip_func
        else:
            self._then_clip = None
            # Something must be in it, or the wrapper does not clip at all.
            self.clip_grad_kwargs = dict(agc=self.agc)
        self.clip_func = self._clip

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        # The names of parameters are known here first: the optimizer has none.
        if self._excluded is None:
            self._excluded = find_excluded(model, self.exclude)
        return super().optim_context(model)

    def _clip(self, params: list[Tensor], **clip_grad: Any) -> Tensor | None:
        if self._excluded is None:
            raise RuntimeError(
                'AGC does not know the names of the parameters yet: call the model in '
                'optim_wrapper.optim_context(model), or drop exclude'
            )
        chosen = [p for p in params if p not in self._excluded]
        share = clip_grad_adaptively_(chosen, **self.agc)
        self.message_hub.update_scalar('train/clipped_units', float(share))
        if self._then_clip is None:
            return None
        return self._then_clip(params, **clip_grad)


def find_excluded(model: nn.Module, names: Sequence[str]) -> set[Tensor]:
    """Find the parameters whose names contain one of some texts.

    Args:
        model: The model.
        names: Parts of names.

    Raises:
        ValueError: If a text is in no name.
    """
    found: set[Tensor] = set()
    for part in names:
        own = {p for name, p in model.named_parameters() if part in name}
        if not own:
            raise ValueError(f'exclude of agc: no parameter has {part!r} in its name')
        found |= own
    return found


@OPTIM_WRAPPERS.register_module(force=True)
class AGCOptimWrapper(_AdaptiveClipping):
    """MMEngine's ``OptimWrapper`` with adaptive gradient clipping (AGC).

        optim_wrapper = dict(
            type='AGCOptimWrapper', agc=dict(clipping=0.08, exclude='bbox_head.'))

    Each step logs ``clipped_units``, the share of the units that were clipped.

    Args:
        *args, **kwargs: As of ``OptimWrapper``. If ``clip_grad`` is given, it clips
            after AGC.
        agc: ``clipping`` (0.01) and ``eps`` (1e-3) of ``clip_grad_adaptively_``,
            and ``exclude``: parts of names of parameters, as in MMEngine's
            ``custom_keys``, that are not clipped. The source excludes the last linear
            layer. Its 0.01 is for batches of 1024 and more; smaller batches need less
            clipping.

    Raises:
        TypeError: If ``agc`` has an unknown name.
        ValueError: If a value of ``agc`` is out of range; in the first step, if
            ``exclude`` fits no parameter.

    Source: Brock et al. 2021.
    """


@OPTIM_WRAPPERS.register_module(force=True)
class AmpAGCOptimWrapper(_AdaptiveClipping, AmpOptimWrapper):
    """``AGCOptimWrapper`` for mixed precision, an ``AmpOptimWrapper``.

    Gradients are clipped after the scale of the loss is undone.
    """
