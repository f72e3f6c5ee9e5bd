"""Tests: conversions leave the global state of torch alone, and do not depend on it."""

import copy
import random

import numpy as np
import pytest
import torch
from bn_networks import Net, images, settle
from bn_resnet import make_bn_net, pws_net
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert import fold_batch_norm, load_bn_weights


class Drawing(nn.Module):
    """A network that draws random numbers, standardizes weights, and has a dead filter.

    A conversion draws more: it builds layers, and gives dead filters random weights.
    """

    def __init__(self):
        super().__init__()
        self.net = settle(Net(), images())
        self.net.last.weight.data[1] = 0
        self.standardized = nn.Sequential(ConvWS2d(5, 5, 3), ConvAWS2d(5, 5, 3))

    def forward(self, x):
        noise = torch.rand(5, 1, 1) + random.random() + float(np.random.rand())
        return self.standardized(self.net(x) + noise.to(x))


def weights_with_a_dead_filter():
    net = make_bn_net()
    net.layer1[0].conv1.weight.data[2] = 0
    gain = dict.fromkeys(['weight_gamma', 'weight_beta'], torch.ones(8, 1, 1, 1))
    return {
        **net.state_dict(),
        **{f'layer1.0.conv2.{key}': value for key, value in gain.items()},  # ConvAWS
    }


def set_states(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def states():
    state = random.getstate(), np.random.get_state()[1].tolist()
    return *state, torch.get_rng_state().tolist()


def check_same(one, two):
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


@pytest.mark.parametrize('batches', [None, [torch.rand(4, 3, 32, 32)]])
def test_convert_to_pws_and_global_random_numbers(batches):
    net, made = Drawing(), []
    for seed in (1, 2):
        set_states(seed)
        before = states()
        made.append(convert_to_pws(net, batches)[0])
        assert states() == before
    check_same(*made)
    assert made[0].net.last.weight[1].std() > 0
    other, _ = convert_to_pws(net, batches, seed=1)
    assert not torch.equal(other.net.last.weight[1], made[0].net.last.weight[1])


def test_load_bn_weights_and_global_random_numbers():
    weights, made = weights_with_a_dead_filter(), []
    for seed in (1, 2):
        set_states(seed)
        net = pws_net()  # with other random weights for each seed
        before = states()
        load_bn_weights(net, weights)
        assert states() == before
        made.append(net)
    check_same(*made)
    assert made[0].layer1[0].conv1.weight[2].std() > 0


def test_fold_batch_norm_and_global_random_numbers():
    net = Drawing()
    before = states()
    fold_batch_norm(net)
    assert states() == before


def test_the_random_state_survives_an_error():
    net, before = Drawing(), states()
    with pytest.raises(RuntimeError):
        convert_to_pws(net, [torch.ones(1, 7, 32, 32)])
    assert states() == before


def check_trains(net):
    assert not any(value.is_inference() for value in net.state_dict().values())
    net.train()  # ResNet.train returns nothing
    y = net(torch.rand(2, 3, 32, 32))
    sum(map(torch.sum, [y] if torch.is_tensor(y) else y)).backward()
    convs = [m for m in net.modules() if isinstance(m, PWSConv2d)]
    assert convs and all(conv.alpha.grad is not None for conv in convs)


@pytest.mark.parametrize('with_images', [False, True])
def test_convert_to_pws_in_inference_mode(with_images):
    net, x = Drawing(), torch.rand(4, 3, 32, 32)
    batches = [x] if with_images else None
    expected, _ = convert_to_pws(net, batches)
    with torch.inference_mode():
        made = [convert_to_pws(net, batches)[0]]
        # A network and images that were made in inference mode
        net, batches = copy.deepcopy(net), [x.clone()] if with_images else None
        assert next(net.parameters()).is_inference()
        made.append(convert_to_pws(net, batches)[0])
    for new in made:
        check_same(new, expected)
        check_trains(new)


def test_load_bn_weights_in_inference_mode():
    expected, net = pws_net(), pws_net()
    weights = weights_with_a_dead_filter()
    load_bn_weights(expected, weights)
    with torch.inference_mode():
        weights = {key: value.clone() for key, value in weights.items()}
        load_bn_weights(net, weights)
    check_same(net, expected)
    check_trains(net)
