"""The identities of equation (12)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pws_mmdet import standardize_weight


def formula(weight, alpha=None, gamma=1e-4, scale=True, mean=None):
    """Equation (12), one filter after the other, in fp64."""
    filters = []
    for o, w in enumerate(weight.double()):
        n = w.numel()
        own_mean = w.sum() / n
        variance = ((w - own_mean) ** 2).sum() / n
        w_hat = (w - own_mean) / (variance + gamma) ** 0.5
        if scale:
            w_hat = w_hat * (2 / n) ** 0.5
        if alpha is not None:
            w_hat = w_hat * alpha[o if len(alpha) > 1 else 0].double()
        if mean is not None:
            w_hat = w_hat + mean[o].double()
        filters.append(w_hat)
    return torch.stack(filters)


def fan_in(weight):
    return weight[0].numel()


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4).filter(lambda s: s[1] * s[2] * s[3] > 1),
    gamma=st.floats(1e-6, 1.0),
    scale=st.booleans(),
    alpha_mode=st.sampled_from(['channel', 'layer', None]),
    keep_mean=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=200)
def test_agrees_with_the_formula(shape, gamma, scale, alpha_mode, keep_mean, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3
    alpha = None
    if alpha_mode:
        size = shape[0] if alpha_mode == 'channel' else 1
        alpha = torch.randn(size, generator=generator, dtype=torch.float64)
    mean = None
    if keep_mean:
        mean = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    expected = formula(weight, alpha, gamma, scale, mean)
    torch.testing.assert_close(
        standardize_weight(weight, alpha, gamma, scale, mean=mean), expected
    )
    alpha32 = None if alpha is None else alpha.float()
    mean32 = None if mean is None else mean.float()
    # In fp32 digits are lost if the variance is far below or far above gamma.
    torch.testing.assert_close(
        standardize_weight(
            weight.float(), alpha32, gamma, scale, None, mean32
        ).double(),
        formula(weight.float(), alpha32, gamma, scale, mean32),
        rtol=1e-4,
        atol=1e-5,
    )


def test_zero_mean():
    weight = torch.randn(16, 8, 3, 3) * 0.05 + 0.7
    mean = standardize_weight(weight).mean(dim=(1, 2, 3))
    assert mean.abs().max() < 1e-6


def test_variance_is_2_over_n_as_gamma_vanishes():
    weight = torch.randn(16, 8, 3, 3, dtype=torch.float64)
    variances = [
        standardize_weight(weight, gamma=gamma).var(dim=(1, 2, 3), unbiased=False)
        for gamma in (1e-1, 1e-3, 1e-9)
    ]
    target = 2 / fan_in(weight)
    errors = [(v - target).abs().max().item() for v in variances]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_gamma_is_inside_the_root():
    # A constant filter: (W - E[W]) is 0 and nothing is divided by 0.
    assert standardize_weight(torch.full((2, 3, 3, 3), 5.0)).abs().max() == 0
    weight = torch.tensor([[[[1.0, -1.0]]]])  # variance 1
    expected = weight / (1 + 3) ** 0.5
    torch.testing.assert_close(standardize_weight(weight, gamma=3.0), expected)


@pytest.mark.parametrize('factor, shift', [(10.0, 0.0), (1.0, 2.0), (0.5, -1.0)])
def test_invariant_to_scale_and_shift_up_to_gamma(factor, shift):
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    # gamma is added to the variance, which grows with the square of the factor.
    torch.testing.assert_close(
        standardize_weight(weight * factor + shift, gamma=1e-2 * factor**2),
        standardize_weight(weight, gamma=1e-2),
    )
    torch.testing.assert_close(
        standardize_weight(weight * factor + shift, gamma=1e-12),
        standardize_weight(weight, gamma=1e-12),
    )
    if factor != 1:
        different = standardize_weight(weight * factor, gamma=1.0)
        assert not torch.allclose(different, standardize_weight(weight, gamma=1.0))


@pytest.mark.parametrize('mean', [None, torch.arange(8.0)])
def test_average_gradient_is_zero(mean):
    """Equation (13): E[grad W_o] = 0 for any gradient of the filters.

    Also if they keep a mean, because it is a constant.
    """
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    filters = standardize_weight(weight, mean=mean)
    (filters * torch.randn(8, 4, 3, 3)).sum().backward()
    assert weight.grad.abs().mean() > 1e-3
    assert weight.grad.mean(dim=(1, 2, 3)).abs().max() < 1e-12


@pytest.mark.parametrize('scale', [True, False])
def test_gradcheck(scale):
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for size in (3, 1):
        alpha = torch.rand(size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda w, a: standardize_weight(w, a, 1e-3, scale), (weight, alpha)
        )
    assert torch.autograd.gradgradcheck(
        lambda w: standardize_weight(w, None, 1e-3, scale), (weight,)
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_weights_are_computed_in_fp32(dtype):
    weight = (torch.randn(8, 4, 3, 3) * 1e-3).to(dtype)
    alpha = torch.rand(8).to(dtype)
    for mean in (None, torch.randn(8).to(dtype)):
        # 1e-8 is 0 in fp16.
        result = standardize_weight(weight, alpha, gamma=1e-8, mean=mean)
        assert result.dtype == dtype
        expected = formula(weight, alpha, 1e-8, mean=mean).to(dtype)
        torch.testing.assert_close(result, expected)


def test_autocast_does_not_lower_the_precision():
    weight = torch.randn(8, 4, 3, 3)
    expected = standardize_weight(weight)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = standardize_weight(weight)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_dtype_of_fp64_is_kept():
    assert standardize_weight(torch.randn(2, 2, 3, 3).double()).dtype == torch.float64


def test_other_convolutions():
    """n is the number of weights of a filter, also for linear, 1D and 3D layers."""
    for shape in ((4, 6), (4, 6, 3), (4, 6, 3, 3, 3)):
        weight = torch.randn(shape)
        torch.testing.assert_close(
            standardize_weight(weight).double(), formula(weight), rtol=1e-4, atol=1e-6
        )


def test_a_filter_of_one_weight_is_refused():
    with pytest.raises(ValueError, match=r'at least 2 values per filter.*\(4, 1, 1, 1'):
        standardize_weight(torch.randn(4, 1, 1, 1))
