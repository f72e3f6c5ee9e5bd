# BN is trained, because no weights are pretrained. It is in FPN and mask head, too.
_base_ = '../_base_/mask_rcnn_r18_fpn_digits.py'

norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=None, norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(mask_head=dict(norm_cfg=norm_cfg)),
)
