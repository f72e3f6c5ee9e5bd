_base_ = 'ssd160_vgg16_normal_bccd.py'

norm_cfg = dict(type='BN', requires_grad=True)

model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
