_base_ = 'ssd96_vgg16_pws_digits.py'

norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=None, norm_cfg=norm_cfg),
    neck=dict(conv_cfg=None, norm_cfg=norm_cfg),
    bbox_head=dict(conv_cfg=None),
)
