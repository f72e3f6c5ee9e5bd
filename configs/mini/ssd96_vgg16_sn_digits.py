_base_ = 'ssd96_vgg16_normal_digits.py'

norm_cfg = dict(type='SN', requires_grad=True)

model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
