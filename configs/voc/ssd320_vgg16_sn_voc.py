_base_ = '../_base_/ssd320_voc0712.py'

norm_cfg = dict(type='SN', requires_grad=True)

model = dict(
    backbone=dict(conv_cfg=None, norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg)
)
