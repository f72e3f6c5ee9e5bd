"""Choose gamma: as the paper does, from a learning rate, or from a training."""

import math

import numpy as np
from torch import nn

from ..layers import PWSConv2d
from .variance_record import VarianceRecord

# If gamma is a fraction of the He variance 2 / n, the filters of a PWS layer never move
# faster than those of a plain convolution that is trained at lr / fraction. The
# authors' fraction of 0.1 at the paper's learning rate of 1e-2 gives this rate.
LARGEST_RATE = 0.1

PAPER_RATE = 1e-2  # the largest learning rate in the paper

LARGEST_STEP = 0.05  # of a filter, relative to its norm
SMALLEST_FRACTION = 1e-3  # of the He variance, since gamma must be positive


def suggest_gamma(
    model: nn.Module, lr: float, largest_rate: float = LARGEST_RATE
) -> float | dict[str, float]:
    r"""Suggest gamma for a learning rate.

    At alpha = 1, a step of W by SGD moves the filters of a layer as if they were
    trained themselves at a learning rate of

    $$\frac{2}{n} \frac{\mathrm{lr}}{\mathrm{Var}[W_o] + \gamma}$$

    This rate grows while weight decay shrinks W. If gamma is a fraction f of the He
    variance 2 / n, the rate stays below lr / f for every W. The suggested fraction is
    lr / ``largest_rate``. For the paper's rate of 1e-2 it is 0.1, the value of the
    authors (``equiv``).

    Args:
        model: A PWS convolution, or a model that has some.
        lr: Largest learning rate of the training, for its batch size.
        largest_rate: The largest rate at which the filters may be trained.

    Returns:
        gamma of the convolution; of a model, that of each PWS layer by name. A config
        sets the same for all layers by
        ``dict(type='PWS', gamma=lr / largest_rate, relative_gamma=True)``.

    Raises:
        ValueError: If a rate is not positive and finite, or no layer is a PWS
            convolution.

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

    The gradient of W is proportional to 1 / sqrt(Var[W] + gamma), and so is a step of
    SGD. No watched step would have moved a filter by more than the part t of its norm
    if gamma of the layer were, for each of its filters, at least

    $$(\mathrm{Var}[W_o] + \gamma_0) \frac{s_o^2}{t^2} - \mathrm{Var}[W_o]$$

    Here gamma_0 is the gamma of the training, and s_o is the step relative to the norm
    of the filter. A record does not have these numbers for each filter. For each layer
    it has the largest s_o, the largest s_o sqrt(Var[W_o] + gamma_0) and the smallest
    variance. The suggested gamma is large enough whichever filters these belong to. It
    is the smallest such gamma if the first two belong to one filter.

    Args:
        record: A training with PWS layers, of a few hundred steps at the learning rate
            for which gamma is wanted.
        largest_step: The part t, such as 0.05.

    Returns:
        gamma of each trained PWS layer by name. It is at least 1e-3 of the He variance
        2 / n. It is inf if a step was not finite, since no gamma can help then.

    Raises:
        ValueError: If ``largest_step`` is not positive, no PWS layer was trained, or
            the record lacks ``scaled_step``, as those of an earlier version do.

    Source: equation (13), for the gradient.
    """
    if not largest_step > 0:
        raise ValueError(f'largest_step must be positive, got {largest_step}')
    step, scaled = record.values['relative_step'], record.values['scaled_step']
    if (np.isfinite(step) & np.isnan(scaled)).any():
        raise ValueError(
            f'{record.path} is of an earlier version, which did not record '
            'scaled_step: train again'
        )
    gammas = {}
    for i, layer in enumerate(record.layers):
        if layer.gamma and not layer.frozen:
            variance = record.values['var_w_min'][:, i]
            needed = _needed_gamma(
                step[:, i], scaled[:, i], variance, layer.gamma, largest_step
            )
            gammas[layer.name] = max(float(needed), SMALLEST_FRACTION * 2 / layer.n)
    if not gammas:
        raise ValueError(f'{record.path}: no PWS convolution was trained and watched')
    return gammas


def _needed_gamma(
    step: np.ndarray,
    scaled: np.ndarray,
    variance: np.ndarray,
    gamma: float,
    largest_step: float,
) -> float:
    """Return the gamma that is enough for all steps, or inf if one is not finite.

    Args:
        step: The statistic ``relative_step``, (S,).
        scaled: ``scaled_step``, (S,).
        variance: ``var_w_min``, (S,).
        gamma: gamma of the training.
        largest_step: The part t.
    """
    inverse, product = largest_step**-2.0, scaled**2
    # The gamma that is enough for one filter, whose s_o may be any up to the largest
    # one. Its variance is product / s_o² - gamma.
    if_of_one = np.where(
        step > largest_step,
        gamma + product * (inverse - np.maximum(step, largest_step) ** -2),
        (variance + gamma) * step**2 * inverse - variance,
    )
    needed = np.minimum(product * inverse - variance, if_of_one)
    return np.nan_to_num(needed, nan=np.inf).max()


def pws_convs(model: nn.Module) -> dict[str, PWSConv2d]:
    """Return the PWS convolutions of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, PWSConv2d)}


def paper_gamma(lr: float) -> float:
    """Return the paper's gamma of SSD: 1e-3 at a learning rate of 1e-2, 1e-5 at 1e-3.

    Between these rates it is 10 lr², the power law through both points. Outside it is
    the gamma of the nearer rate, because outputs vanish with a much larger gamma.

    Source: Table 2.
    """
    return min(max(10 * lr**2, 1e-5), 1e-3)


def advise(model: nn.Module, lr: float) -> str:
    """Return advice, from the paper, for a model that diverged at a learning rate."""
    rate = min(lr, PAPER_RATE)
    gamma, slower = paper_gamma(rate), rate / 10
    convs = pws_convs(model)
    if not convs:
        return (
            f'Try a learning rate of {slower:.3g}, or one of {rate:.3g} with '
            'convolutions that train without a norm layer: '
            f"conv_cfg=dict(type='PWS', gamma={gamma:.3g})."
        )
    gammas = sorted({conv.gamma for conv in convs.values()})
    now = ' to '.join(f'{g:.3g}' for g in dict.fromkeys((gammas[0], gammas[-1])))
    ways = [f'a learning rate of {slower:.3g} with gamma={paper_gamma(slower):.3g}']
    if lr > rate:
        ways.insert(0, f'a learning rate of {rate:.3g} with gamma={gamma:.3g}')
    elif gammas[0] < gamma:
        ways.insert(0, f'gamma={gamma:.3g}')
    return (
        f'The learning rate is {lr:.3g} and gamma {now}; the paper has gamma=1e-3 for '
        f'1e-2 and 1e-5 for 1e-3. Try {", or ".join(ways)}.'
    )


def _he_variance(conv: PWSConv2d) -> float:
    return 2 / conv.weight[0].numel()
