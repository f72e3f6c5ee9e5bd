import pytest
import torch
from mmcv.cnn import build_norm_layer

from pws_mmdet.layers import NoNorm


@pytest.mark.parametrize('shape', [(2, 6, 5, 5), (2, 6, 7), (2, 6)])
def test_passes_its_input_through(shape):
    x = torch.randn(shape)
    assert torch.equal(NoNorm(6)(x), x)
    assert not list(NoNorm(6).parameters())


def test_bias_is_that_of_a_plain_convolution():
    norm = NoNorm(6, bias=True)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(norm(x), x)
    norm.bias.data = torch.arange(6.0)
    torch.testing.assert_close(norm(x) - x, torch.arange(6.0).view(6, 1, 1) + 0 * x)


def test_built_from_a_norm_cfg():
    cfg = dict(type='NoNorm', bias=True, requires_grad=False)
    name, norm = build_norm_layer(cfg, 6, postfix=1)
    assert name == 'no_norm1'
    assert isinstance(norm, NoNorm)
    assert not norm.bias.requires_grad
