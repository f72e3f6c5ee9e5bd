"""What PWS, WN and ScaledWS convolutions share: how they become plain convolutions."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from pws_mmdet import PWSConv2d
from pws_mmdet.layers import ScaledWSConv2d, WNConv2d

LAYERS = {
    'PWS': lambda **options: PWSConv2d(4, 6, 3, **options),
    'one alpha': lambda **options: PWSConv2d(4, 6, 3, alpha='layer', **options),
    'no alpha': lambda **options: PWSConv2d(4, 6, 3, alpha='fixed', **options),
    'no scale': lambda **options: PWSConv2d(4, 6, 3, scale=False, **options),
    'kept mean': lambda **options: PWSConv2d(4, 6, 3, keep_mean=True, **options),
    'WN': lambda **options: WNConv2d(4, 6, 3, **options),
    'WN, trained g': lambda **options: WNConv2d(4, 6, 3, g='trained', **options),
    'ScaledWS': lambda **options: ScaledWSConv2d(4, 6, 3, **options),
}
OPTIONS = [
    dict(),
    dict(beta=False),
    dict(stride=2, padding=1, dilation=2, groups=2),
    dict(padding='same', padding_mode='reflect'),
]


@pytest.fixture
def x():
    return torch.randn(2, 4, 9, 9)


def randomized(conv):
    """The layer with parameters that all matter to its output."""
    with torch.no_grad():
        for p in conv.state_dict().values():  # also buffers
            p.copy_(torch.randn_like(p) + 0.5)
    return conv


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_fuse_returns_the_equivalent_convolution(name, options, x):
    conv = randomized(LAYERS[name](**options))
    before = copy.deepcopy(conv.state_dict())
    plain = conv.fuse()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), conv(x))
    assert (plain.bias is None) == (conv.bias is None)
    for key, value in conv.state_dict().items():  # which stays as it is
        assert torch.equal(value, before[key])
    nn.init.zeros_(plain.weight)  # its memory is its own
    assert conv.weight.abs().sum() > 0


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_switch_to_deploy_gives_the_layer_the_weights_of_fuse(name, options, x):
    conv = randomized(LAYERS[name](**options))
    expected, plain = conv(x), conv.fuse()
    cls = type(conv)
    conv.switch_to_deploy()
    torch.testing.assert_close(conv(x), expected)
    assert type(conv) is cls and 'deployed=True' in repr(conv)
    assert conv.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(conv.state_dict()[key], value)
    # a plain convolution of the same arguments takes them
    plain.load_state_dict(conv.state_dict())
    conv.switch_to_deploy()  # a second time changes nothing
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv.fuse()(x), expected)
    assert torch.equal(conv.effective_weight(), conv.weight)


@pytest.mark.parametrize('keep_mean', [False, True])
def test_deployed_layers_refuse_the_weights_of_before(keep_mean):
    conv = PWSConv2d(4, 6, 3, keep_mean=keep_mean)
    weights = conv.state_dict()
    conv.switch_to_deploy()
    assert conv.mean is None and list(conv.state_dict()) == ['weight', 'bias']
    for some in (weights, {k: v for k, v in weights.items() if k != 'alpha'}):
        if len(some) > 2:
            with pytest.raises(ValueError, match='has become a plain convolution'):
                conv.load_state_dict(some)
    conv.load_state_dict(conv.state_dict())


@pytest.mark.parametrize(
    'change',
    [lambda conv: prune.l1_unstructured(conv, 'weight', 0.5), weight_norm],
    ids=['pruned', 'parametrized'],
)
def test_a_changed_parameter_can_be_fused_but_not_switched(change, x):
    conv = randomized(PWSConv2d(4, 6, 3, keep_mean=True))
    change(conv)
    expected = conv(x)
    torch.testing.assert_close(conv.fuse()(x), expected)
    with pytest.raises(ValueError, match='pruned or parametrized, remove that first'):
        conv.switch_to_deploy()
    torch.testing.assert_close(conv(x), expected)


def test_a_layer_with_a_forward_of_its_own_is_refused():
    class Doubled(PWSConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    for method in ('fuse', 'switch_to_deploy'):
        with pytest.raises(TypeError, match='with a forward of its own'):
            getattr(Doubled(4, 6, 3), method)()


def test_parameters_keep_what_is_trained():
    conv = PWSConv2d(4, 6, 3)
    assert conv.fuse().weight.requires_grad and conv.fuse().bias.requires_grad
    conv.weight.requires_grad_(False)
    assert conv.fuse().weight.requires_grad  # because alpha is trained
    conv.alpha.requires_grad_(False)
    conv.bias.requires_grad_(False)
    plain = conv.fuse()
    assert not plain.weight.requires_grad and not plain.bias.requires_grad


def test_fuse_draws_no_random_numbers():
    conv = PWSConv2d(4, 6, 3)
    state = torch.get_rng_state()
    conv.fuse()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_fused_layers_keep_dtype_and_memory_format(dtype):
    conv = PWSConv2d(4, 6, 3).to(dtype).to(memory_format=torch.channels_last)
    plain = conv.eval().fuse()
    assert plain.weight.dtype == plain.bias.dtype == dtype
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.training


def test_bias_conv_has_a_bias_where_blocks_want_none():
    conv = MODELS.build(
        dict(
            type='BiasConv2d', in_channels=4, out_channels=6, kernel_size=3, bias=False
        )
    )
    assert type(conv) is nn.Conv2d and conv.bias.shape == (6,)
