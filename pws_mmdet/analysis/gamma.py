"""How to choose gamma: the paper's choices, and a form that fits every layer."""

import math

import numpy as np
from torch import nn

from ..layers import PWSConv2d
from .record import VarianceRecord

# With gamma a fraction of the He variance 2 / n, the filters of a PWS layer never
# move faster than those of a plain convolution at lr / fraction. This is the rate
# that the authors' fraction of 0.1 allows at the paper's learning rate of 1e-2.
LARGEST_RATE = 0.1

LARGEST_STEP = 0.05  # of W, relative to its norm
LEAST_FRACTION = 1e-3  # of the He variance: gamma must be positive


def suggest_gamma(
    model: nn.Module, lr: float, largest_rate: float = LARGEST_RATE
) -> float | dict[str, float]:
    r"""Suggest gamma for a learning rate.

    A step of W by SGD moves the filters of a layer, at alpha = 1, as if they were
    trained themselves at a learning rate of

    .. math:: \frac{2}{n} \frac{lr}{Var[W_o] + \gamma}

    which grows while weight decay shrinks W. With gamma at a fraction f of the He
    variance 2 / n it stays below lr / f, whatever becomes of W. The fraction is
    lr / ``largest_rate``: 0.1, the authors' ``equiv``, for the paper's rate of 1e-2.

    Args:
        model: A PWS convolution, or a model that has some.
        lr: Largest learning rate of the training, for its batch size.
        largest_rate: What the filters may be trained at.

    Returns:
        gamma of a convolution; for a model, that of each of its PWS layers by name.
        In a config, the same for all layers is
        ``dict(type='PWS', gamma=lr / largest_rate, relative_gamma=True)``.

    Raises:
        ValueError: If the learning rate is not positive and finite, or no layer is a
            PWS convolution.

    Source: equation (12), "Parameter gamma"; the authors' code (``equiv``).
    """
    for name, rate in (('lr', lr), ('largest_rate', largest_rate)):
        if not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f'{name} must be positive and finite, got {rate}')
    fraction = lr / largest_rate
    if isinstance(model, PWSConv2d):
        return _he_variance(model) * fraction
    convs = pws_convs(model)
    if not convs:
        raise ValueError(
            f'{type(model).__name__} has no PWS convolution to suggest gamma for; '
            "conv_cfg=dict(type='PWS') makes them"
        )
    return {name: _he_variance(conv) * fraction for name, conv in convs.items()}


def gamma_of_record(
    record: VarianceRecord, largest_step: float = LARGEST_STEP
) -> dict[str, float]:
    r"""Suggest gamma from what a training did to its filters.

    The gradient of W is inverse to sqrt(Var[W] + gamma), and so is a step of it. The
    gamma of a layer is the least with which no watched step would have moved a filter
    by more than a part of its norm:

    .. math:: (Var[W_o] + \gamma_0)\,
        \Big(\frac{\text{step}}{\text{largest step}}\Big)^2 - Var[W_o]

    gamma_0 being the one that the training had, the step the largest of a filter,
    and Var[W_o] the least.

    Args:
        record: A training with PWS layers, a few hundred steps at the learning rate
            that is meant.
        largest_step: The part, such as 0.05.

    Returns:
        gamma of each PWS layer by name, at least 1e-3 of its He variance 2 / n. inf
        where no gamma can help, as the steps were not finite.

    Raises:
        ValueError: If ``largest_step`` is not positive, or no PWS layer was trained.

    Source: equation (13), for the gradient.
    """
    if not largest_step > 0:
        raise ValueError(f'largest_step must be positive, got {largest_step}')
    gammas = {}
    for i, layer in enumerate(record.layers):
        if layer.gamma and not layer.frozen:
            step = record.values['relative_step'][:, i] / largest_step
            variance = record.values['var_w_min'][:, i]
            needed = (variance + layer.gamma) * step**2 - variance
            needed = np.nan_to_num(needed, nan=np.inf).max()
            gammas[layer.name] = max(float(needed), LEAST_FRACTION * 2 / layer.n)
    if not gammas:
        raise ValueError(f'{record.path}: no PWS convolution was trained and watched')
    return gammas


def pws_convs(model: nn.Module) -> dict[str, PWSConv2d]:
    """Return the PWS convolutions of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, PWSConv2d)}


def paper_gamma(lr: float) -> float:
    """Return gamma as the paper takes it for SSD: 1e-3 at 1e-2, 1e-5 at 1e-3.

    Between and beyond the two it is the power law through them, 10 lr².

    Source: Table 2.
    """
    return 10 * lr**2


def advise(model: nn.Module, lr: float) -> str:
    """Say what the paper would try with a model that diverged at a learning rate."""
    slower = f'a learning rate of {lr / 10:.3g}'
    convs = pws_convs(model)
    if not convs:
        return (
            f'Try {slower}, or convolutions that stand {lr:.3g} without a norm layer: '
            f"conv_cfg=dict(type='PWS', gamma={paper_gamma(lr):.3g})."
        )
    gammas = sorted({conv.gamma for conv in convs.values()})
    now = ' to '.join(f'{g:.3g}' for g in dict.fromkeys((gammas[0], gammas[-1])))
    ways = [f'{slower} with gamma={paper_gamma(lr / 10):.3g}']
    if gammas[0] < paper_gamma(lr):
        ways.insert(0, f'gamma={paper_gamma(lr):.3g}')
    return (
        f'The learning rate is {lr:.3g} and gamma {now}; the paper has gamma=1e-3 for '
        f'1e-2 and 1e-5 for 1e-3. Try {", or ".join(ways)}.'
    )


def _he_variance(conv: PWSConv2d) -> float:
    return 2 / conv.weight[0].numel()
