# 8 groups: a quarter of the usual 32, for the networks of reduced width
_base_ = '../_base_/mask_rcnn_r18_fpn_digits.py'

norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=dict(type='Conv2d'), norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(mask_head=dict(norm_cfg=norm_cfg)),
)
