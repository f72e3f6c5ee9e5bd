import pytest
import torch
from conftest import ROOT
from mmcv.cnn.bricks.conv_module import ConvModule
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.models import PWSSSDHead

CHANNELS = (8, 16)


def make_head(**kwargs):
    cfg = Config.fromfile(ROOT / 'configs/mini/ssd96_vgg16_pws_digits.py').model
    return PWSSSDHead(
        num_classes=3,
        in_channels=CHANNELS,
        anchor_generator=dict(cfg.bbox_head.anchor_generator, strides=[8, 16]),
        train_cfg=cfg.train_cfg,
        test_cfg=cfg.test_cfg,
        **kwargs,
    )


def predictors(head):
    return [m[-1] for m in (*head.cls_convs, *head.reg_convs)]


def test_predictors_follow_conv_cfg_with_one_alpha_and_beta_per_layer():
    head = make_head(conv_cfg=dict(type='PWS', gamma=1e-3))
    convs = predictors(head)
    assert len(convs) == 4
    for conv in convs:
        assert isinstance(conv, PWSConv2d)
        assert conv.gamma == 1e-3
        assert conv.alpha.shape == conv.bias.shape == (1,)
        assert (conv.kernel_size, conv.padding) == ((3, 3), (1, 1))
    assert [c.out_channels for c in convs] == [9 * 4] * 4


def test_config_may_name_the_class_or_another_mode():
    head = make_head(conv_cfg=dict(type=PWSConv2d, alpha='channel'))
    assert all(c.alpha.shape == (36,) for c in predictors(head))
    head = make_head(conv_cfg=dict(type=PWSConv2d))
    assert all(c.alpha.shape == (1,) for c in predictors(head))


@pytest.mark.parametrize('conv_cfg', [None, dict(type='Conv2d'), dict(type='ConvWS')])
def test_other_convolutions(conv_cfg):
    head = make_head(conv_cfg=conv_cfg)
    for conv in predictors(head):
        assert isinstance(conv, nn.Conv2d) and not isinstance(conv, PWSConv2d)
        assert conv.bias.shape == (36,)
    if conv_cfg and conv_cfg['type'] == 'ConvWS':
        assert type(conv).__name__ == 'ConvWS2d'


def test_towers():
    head = make_head(conv_cfg=dict(type='PWS'), stacked_convs=1, feat_channels=8)
    assert isinstance(head.cls_convs[0][0], ConvModule)
    assert head.cls_convs[0][0].conv.alpha.shape == (8,)
    assert head.cls_convs[0][1].alpha.shape == (1,)


@pytest.mark.parametrize('conv_cfg', [None, dict(type='PWS')])
@pytest.mark.parametrize('num_boxes', [2, 0])
def test_trains_and_predicts(conv_cfg, num_boxes):
    torch.manual_seed(0)
    head = make_head(conv_cfg=conv_cfg)
    head.init_weights()
    feats = tuple(
        torch.randn(2, c, 96 // s, 96 // s)
        for c, s in zip(CHANNELS, (8, 16), strict=True)
    )
    size = (96, 96)
    metas = [dict(img_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))] * 2
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [50.0, 40.0, 80.0, 90.0]])[:num_boxes]
    gt = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2])[:num_boxes])
    losses = head.loss_by_feat(*head(feats), [gt, gt], metas)
    total = sum(loss.sum() for values in losses.values() for loss in values)
    assert torch.isfinite(total)
    assert (total > 0) == (num_boxes > 0)
    total.backward()
    head.eval()
    results = head.predict_by_feat(*head(feats), batch_img_metas=metas)
    assert len(results) == 2
    for result in results:
        assert 0 < len(result) <= 200
        assert result.bboxes.shape == (len(result), 4)
        assert (result.scores[:-1] >= result.scores[1:]).all()
