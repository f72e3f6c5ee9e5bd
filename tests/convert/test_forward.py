"""Tests of batches and forward passes."""

import torch

from pws_mmdet.convert.forward import crop, first_image, images_in


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


def test_a_crop_of_a_batch():
    x = torch.randn(2, 3, 10, 6)
    assert torch.equal(crop(x, 8), x[:, :, :8])
    assert torch.equal(crop(x[0], 4), x[0, :, :4, :4])
    made = crop(dict(inputs=[x[0], x[1, :, :2]], data_samples=['a', 'b']), 4)
    assert [y.shape for y in made['inputs']] == [(3, 4, 4), (3, 2, 4)]
    assert made['data_samples'] == ['a', 'b']
    assert (
        crop((x, 5), 4)[0].shape == (2, 3, 4, 4) and crop('anything', 4) == 'anything'
    )
