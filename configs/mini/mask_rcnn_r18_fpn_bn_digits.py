_base_ = 'mask_rcnn_r18_fpn_pws_digits.py'

norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=None, norm_cfg=norm_cfg),
    neck=dict(conv_cfg=None, norm_cfg=norm_cfg),
    roi_head=dict(mask_head=dict(conv_cfg=None, norm_cfg=norm_cfg)),
)

custom_hooks = []
