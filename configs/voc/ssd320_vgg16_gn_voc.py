_base_ = '../_base_/ssd320_voc0712.py'

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=dict(type='Conv2d'), norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
)
