"""Tests of batches and forward passes."""

import torch

from pws_mmdet.convert.forward import first_image, images_in


def test_the_first_image_of_a_batch():
    x = torch.randn(3, 3, 8, 8)
    for batch, number in [
        (x, 3),
        (dict(inputs=x), 3),
        (dict(inputs=list(x), data_samples=[1, 2, 3]), 3),
        (dict(inputs=[x[0], x[0, :, :4]], data_samples=[1, 2]), 2),
    ]:
        assert images_in(batch) == number
        one = first_image(batch)
        assert images_in(one) == 1
        if isinstance(batch, dict):
            assert {len(value) for value in one.values()} == {1}
    for batch in ((x, x[0]), dict(inputs=x, rescale=True), 'anything'):
        assert first_image(batch) is batch
    assert images_in((x, 2)) == 3 and images_in('anything') is None
