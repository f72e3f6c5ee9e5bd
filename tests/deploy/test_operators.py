"""The operators of the export, in PyTorch and in ONNX Runtime."""

import pytest
import torch
from mmcv.ops import RoIAlign
from small_detectors import needs_onnx, onnx_session
from torch import nn

from pws_mmdet.deploy import TRANSLATIONS
from pws_mmdet.deploy.operators import aligned_rois, nms_mask


def test_nms_mask_keeps_the_best_of_each_image():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    boxes = boxes.expand(2, 3, 4)
    scores = torch.tensor([[0.5, 0.6, 0.4], [0.5, 0.0, 0.7]])
    kept = nms_mask(boxes, scores, 0.5, 5)
    assert kept.tolist() == [[False, True, True], [True, False, True]]
    kept = nms_mask(boxes, scores, 0.5, 1)
    assert kept.tolist() == [[False, True, False], [False, False, True]]
    assert not nms_mask(boxes, scores * 0, 0.5, 5).any()


class Regions(nn.Module):
    """RoIAlign of boxes on two images."""

    def __init__(self, sampling_ratio, aligned):
        super().__init__()
        self.options = sampling_ratio, aligned

    def forward(self, features, boxes, images):
        return aligned_rois(features, boxes, images, 3, 2, 0.25, *self.options)


@needs_onnx
@pytest.mark.parametrize('aligned', [True, False], ids=['half', 'whole'])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
def test_regions_in_onnx(tmp_path, sampling_ratio, aligned):
    features = torch.randn(2, 3, 12, 10)
    boxes = torch.tensor(
        [[0.0, 0, 39, 47], [3, 5, 20, 30], [8, 8, 9.5, 9], [0, 0, 0, 0], [20, 4, 40, 9]]
    )
    inputs = features, boxes, torch.tensor([0, 1, 1, 0, 0])
    regions = Regions(sampling_ratio, aligned)
    program = torch.export.export(regions, inputs)
    path = tmp_path / 'regions.onnx'
    torch.onnx.export(
        program,
        dynamo=True,
        input_names=['features', 'boxes', 'images'],
        opset_version=18,
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    ).save(path)
    names = ('features', 'boxes', 'images')
    values = dict(zip(names, (t.numpy() for t in inputs), strict=True))
    (found,) = onnx_session(path).run(None, values)
    layer = RoIAlign((3, 2), 0.25, sampling_ratio, aligned=aligned)
    rois = torch.cat([inputs[2][:, None].float(), boxes], dim=1)
    torch.testing.assert_close(torch.from_numpy(found), layer(features, rois))
