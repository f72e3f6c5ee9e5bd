"""Tests: only BN that a forward pass shows is folded, and the report names the rest."""

import pytest
import torch
import torch.nn.functional as F
from bn_networks import check_same, settle
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert import fold_batch_norm

X = torch.randn(32, 3, 16, 16)


def block(c_in=6):
    return nn.Sequential(nn.Conv2d(c_in, 6, 3, padding=1), nn.BatchNorm2d(6))


class Steps(nn.Module):
    """Calls the parts of its blocks, the later ones with a ReLU before BN.

    Args:
        ends: The step before which it raises an error unless it has a size.
        keeps: The output of the first convolution is also added to the last step.
    """

    def __init__(self, ends, keeps=False):
        super().__init__()
        self.a, self.b, self.c = block(3), block(), block()
        self.last = nn.Conv2d(6, 4, 1)
        self.ends, self.keeps = ends, keeps

    def forward(self, x, size=None):
        kept = None
        for i, (conv, bn) in enumerate((self.a, self.b, self.c)):
            if i == self.ends and not size and not self.training:
                raise ValueError('it needs a size')
            x = conv(x)
            if self.keeps and not i:
                kept = x
            x = F.relu(bn(F.relu(x) if i else x))
        return self.last(x if kept is None else x + kept)


def with_size(net, x):
    return net(x, size=(1, 1))


@torch.no_grad()
@pytest.mark.parametrize(
    'ends, keeps, plain',
    [
        (0, False, ['a.0', 'b.0', 'c.0']),
        (1, False, ['b.0', 'c.0']),
        (2, False, ['c.0']),
        (3, False, []),
        # Is the output of the first convolution read again behind the error?
        (1, True, ['a.0', 'b.0', 'c.0']),
        (2, True, ['a.0', 'c.0']),
        (3, True, []),
    ],
)
def test_what_a_network_calls_before_an_error_on_noise(ends, keeps, plain, messages):
    net = settle(Steps(ends, keeps), X)
    folded, layers = fold_batch_norm(net)
    torch.testing.assert_close(with_size(folded, X), with_size(net, X))
    assert [layer.name for layer in layers if layer.kept] == plain
    assert len(messages) == bool(plain)

    new, report = convert_to_pws(net)
    reasons = {line.name: line.kept for line in report if line.kept}
    assert list(reasons) == plain
    for name in ('a', 'b', 'c'):
        conv, bn = new.get_submodule(name)
        if f'{name}.0' in plain:
            assert type(conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d
            assert 'give batches, or forward' in reasons[f'{name}.0']
        else:  # the BN layers of b and c read the output of a ReLU
            assert type(conv) is PWSConv2d
            folds = name == 'a' and not keeps
            assert isinstance(bn, nn.Identity if folds else nn.BatchNorm2d)
    check_same(lambda x: with_size(new, x), lambda x: with_size(net, x), X)
    for text in messages:
        assert 'ended with ValueError: it needs a size' in text

    messages.clear()
    new, report = convert_to_pws(net, forward=with_size)
    assert {line.kept + line.reason for line in report} == {''} and not messages
    check_same(lambda x: with_size(new, x), lambda x: with_size(net, x), X)


def test_a_convolution_that_was_not_called_is_named(messages):
    """The last convolution has no BN, so it is converted."""
    _, report = convert_to_pws(settle(Steps(0), X))
    assert str(report[-1]) == 'last: converted (no forward pass called it)'
    assert 'No forward pass called a.0, b.0, c.0 and 1 more' in messages[0]


def test_nothing_is_left_to_convert():
    net = settle(Steps(0), X)
    net.last = nn.Identity()
    with pytest.raises(ValueError, match='no forward pass called it, and BN may foll'):
        convert_to_pws(net)


class WithHead(nn.Module):
    """A head that only training calls, and one that only bright images reach."""

    def __init__(self):
        super().__init__()
        self.stem, self.aux, self.bright = block(3), block(), block()
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.last(x)
        if self.training:
            return y, self.aux[1](F.relu(self.aux[0](x)))
        return (y, self.bright(x)) if x.max() > 30 else y


@torch.no_grad()
def test_layers_that_a_successful_forward_pass_does_not_call(messages):
    net = settle(WithHead(), X)
    dark, bright = 0 * X[:4], 100 * X[:4]
    for batches, plain in (
        (None, ['aux.0', 'bright.0']),
        ([dark], ['aux.0', 'bright.0']),
        ([dark, bright], ['aux.0']),
    ):
        messages.clear()
        new, report = convert_to_pws(net, batches)
        assert [line.name for line in report if line.kept] == plain
        check_same(new, net, dark)
        check_same(new, net, bright)
        assert type(new.stem[0]) is PWSConv2d
        aux = F.relu(new.aux[0](torch.ones(1, 6, 4, 4)))
        expected = F.relu(net.aux[0](torch.ones(1, 6, 4, 4)))
        assert torch.equal(new.aux[1](aux), net.aux[1](expected))
        assert len(messages) == 1 and 'aux.0' in messages[0]
    assert isinstance(new.bright[1], nn.Identity)
