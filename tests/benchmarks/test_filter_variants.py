"""All ways to compute filters compute the same ones."""

import filter_ways
import pytest
import torch

from pws_mmdet import PWSConv2d


@pytest.mark.parametrize('way', [w for w in filter_ways.WAYS if 'copies' not in w[0]])
def test_ways_agree(way):
    convs = [PWSConv2d(c, 4, 3) for c in (2, 3, 2)]
    convs.sort(key=filter_ways.length)
    for conv in convs:
        torch.nn.init.uniform_(conv.alpha, 0.5, 2)
    for conv, filters in zip(convs, way[2](convs), strict=True):
        expected = conv.effective_weight().flatten(1)
        exact = filters.dtype == torch.float32
        tolerance = dict(rtol=1e-5, atol=1e-6) if exact else dict(rtol=0.02, atol=0.02)
        torch.testing.assert_close(filters.flatten(1).float(), expected, **tolerance)


def test_a_step_ends_with_gradients(monkeypatch):
    monkeypatch.setattr(filter_ways, 'DEPTH', 18)
    for _, *way in filter_ways.WAYS:
        assert filter_ways.make_step(*way)() > 0
