import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pws_mmdet import PWSConv2d, suggest_gamma
from pws_mmdet.analysis import Layer, VarianceRecord, gamma_of_record
from pws_mmdet.analysis.gamma import advise, paper_gamma
from pws_mmdet.analysis.variance import step_statistics


@pytest.mark.parametrize('shrunk', [1.0, 0.1, 1e-4])
def test_filters_never_move_faster_than_the_largest_rate(shrunk):
    """A step of SGD is compared with that of a plain convolution of these filters."""
    lr, largest = 1e-5, 0.1
    conv = PWSConv2d(4, 8, 3, beta=False).double()
    conv.gamma = suggest_gamma(conv, lr, largest)
    conv.weight.data.mul_(shrunk)  # as weight decay does
    filters = conv.effective_weight().detach()
    g = 1e-6 * torch.randn_like(filters)
    # Standardization removes the mean of a step and the direction that only scales the
    # filter. Remove them from the step of the plain convolution, too.
    g -= g.mean((1, 2, 3), keepdim=True)
    unit = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    g -= unit * (g * unit).sum((1, 2, 3), keepdim=True)
    (conv.effective_weight() * g).sum().backward()
    conv.weight.data -= lr * conv.weight.grad
    moved = filters - conv.effective_weight().detach()
    n = filters[0].numel()
    rates = moved.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
    assert (rates < largest * 1.001).all()
    expected = 2 / n * lr / (conv.gamma + conv.weight.flatten(1).var(1, correction=0))
    torch.testing.assert_close(rates, expected, rtol=1e-3, atol=0)
    if shrunk == 1e-4:  # the bound is nearly reached
        assert (rates > 0.9 * largest).all()


def test_gamma_is_the_same_fraction_of_the_he_variance_in_every_layer():
    model = nn.Sequential(PWSConv2d(3, 8, 3), nn.Conv2d(8, 8, 3), PWSConv2d(8, 4, 1))
    assert suggest_gamma(model, 0.01) == pytest.approx({'0': 0.2 / 27, '2': 0.2 / 8})
    assert suggest_gamma(model[2], 0.02) == pytest.approx(0.4 / 8)
    built = PWSConv2d(3, 8, 3, gamma=0.1, relative_gamma=True)
    assert suggest_gamma(built, 0.01) == pytest.approx(built.gamma)


def test_a_bad_rate_or_a_model_without_pws_is_an_error():
    conv = PWSConv2d(3, 8, 3)
    for lr in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match='lr must be positive and finite'):
            suggest_gamma(conv, lr)
    with pytest.raises(ValueError, match='largest_rate must be positive'):
        suggest_gamma(conv, 0.1, 0)
    with pytest.raises(ValueError, match='Sequential has no PWS convolution'):
        suggest_gamma(nn.Sequential(nn.Conv2d(3, 8, 3)), 0.01)


def test_the_papers_gamma_is_that_of_table_2():
    assert paper_gamma(1e-2) == pytest.approx(1e-3)
    assert paper_gamma(3e-3) == pytest.approx(9e-5)
    assert paper_gamma(1e-3) == pytest.approx(1e-5)
    assert paper_gamma(0.1) == 1e-3 and paper_gamma(1e-4) == 1e-5


def test_advice_names_a_larger_gamma_or_a_lower_rate():
    small, large = PWSConv2d(3, 8, 3, gamma=1e-5), PWSConv2d(3, 8, 3, gamma=0.1)
    text = advise(small, 1e-2)
    assert 'gamma 1e-05;' in text
    assert 'Try gamma=0.001, or a learning rate of 0.001 with gamma=1e-05' in text
    assert 'Try a learning rate of 0.001 with gamma' in advise(large, 1e-2)
    plain = 'Try a learning rate of 0.001, or one of 0.01 with convolutions'
    text = advise(nn.Conv2d(1, 1, 3), 1e-2)
    assert text.startswith(plain)
    assert "conv_cfg=dict(type='PWS', gamma=0.001)" in text


@pytest.mark.parametrize('lr', [0.03, 0.1])
def test_advice_stays_in_the_range_of_the_paper(lr):
    text = advise(PWSConv2d(3, 8, 3, gamma=1e-3), lr)
    assert text.startswith(f'The learning rate is {lr} and gamma 0.001;')
    assert text.endswith(
        'Try a learning rate of 0.01 with gamma=0.001, or a learning rate of 0.001 '
        'with gamma=1e-05.'
    )
    assert advise(nn.Conv2d(1, 1, 3), lr) == advise(nn.Conv2d(1, 1, 3), 0.01)


def record_of(values, layers):
    steps = np.arange(1, 1 + len(values['relative_step']))
    values = {k: np.array(v, dtype=float) for k, v in values.items()}
    return VarianceRecord(Path('log'), layers, steps, steps * 0.1, steps * 1.0, values)


def test_gamma_of_a_record_bounds_the_steps():
    layers = [
        Layer('plain', 'Conv2d', 27, 8, 0.0, False),
        Layer('calm', 'PWSConv2d', 27, 8, 0.01, False),
        Layer('wild', 'PWSConv2d', 27, 8, 0.01, False),
        Layer('frozen', 'PWSConv2d', 27, 8, 0.01, True),
    ]
    values = dict(
        relative_step=[[9, 0.001, 0.1, 9], [9, 0.002, 0.2, 9]],
        var_w_min=[[1, 0.07, 0.08, 1], [1, 0.07, 0.07, 1]],
    )
    variance = np.array(values['var_w_min'])
    values['scaled_step'] = values['relative_step'] * np.sqrt(variance + 0.01)
    gammas = gamma_of_record(record_of(values, layers), largest_step=0.05)
    assert set(gammas) == {'calm', 'wild'}
    # A step is proportional to 1 / sqrt(Var + gamma): the new gamma turns 0.2 to 0.05.
    new = 0.2 * math.sqrt((0.07 + 0.01) / (0.07 + gammas['wild']))
    assert new == pytest.approx(0.05)
    assert gammas['calm'] == pytest.approx(1e-3 * 2 / 27)
    values['relative_step'][1][2] = math.nan
    assert gamma_of_record(record_of(values, layers))['wild'] == math.inf
    with pytest.raises(ValueError, match='log: no PWS convolution was trained'):
        gamma_of_record(record_of(values, layers[:1] + layers[3:]))
    with pytest.raises(ValueError, match='largest_step must be positive'):
        gamma_of_record(record_of(values, layers), 0)
    lacking = dict(values, scaled_step=[[math.nan] * 4] * 2)
    with pytest.raises(ValueError, match='log is of an earlier version'):
        gamma_of_record(record_of(lacking, layers))


@pytest.mark.parametrize('largest_step', [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize('parts', [(0.2, 0.02), (0.02, 0.2), (0.06, 0.05)])
def test_gamma_of_a_record_is_enough_for_filters_of_different_variance(
    largest_step, parts
):
    gamma = 1e-3
    old = torch.randn(2, 4, 3, 3).double()
    old *= torch.tensor([0.1, 0.01]).sqrt().view(2, 1, 1, 1)  # Var[W_o]
    new = old * (1 - torch.tensor(parts).view(2, 1, 1, 1))
    measured = step_statistics(old, new, gamma)
    values = {name: [[value.item()]] for name, value in measured.items()}
    layers = [Layer('a', 'PWSConv2d', 36, 2, gamma, False)]
    found = gamma_of_record(record_of(values, layers), largest_step)['a']
    # the steps with the gamma that was found
    variance = old.flatten(1).var(1, correction=0)
    steps = torch.tensor(parts) * ((variance + gamma) / (variance + found)).sqrt()
    assert (steps < largest_step * 1.0001).all()


def test_gamma_of_a_record_is_the_smallest_one_if_one_filter_decides():
    """The filter with the larger variance makes the largest step."""
    values = dict(relative_step=[[0.06]], var_w_min=[[0.01]])
    values['scaled_step'] = [[0.06 * math.sqrt(0.1 + 1e-3)]]
    layers = [Layer('a', 'PWSConv2d', 36, 2, 1e-3, False)]
    [found] = gamma_of_record(record_of(values, layers)).values()
    assert found == pytest.approx((0.1 + 1e-3) * (0.06 / 0.05) ** 2 - 0.1)
