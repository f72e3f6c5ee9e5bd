_base_ = '../_base_/imagenet_r50.py'

model = dict(
    backbone=dict(conv_cfg=None, norm_cfg=dict(type='BN'), pre_activation=False)
)
