# Plain convolutions, without any normalization
_base_ = '../_base_/digits_imagefolder.py'

model = dict(
    backbone=dict(
        type='PWSCifarResNet', depth=20, base_channels=8, conv_cfg=dict(type='Conv2d')
    ),
    head=dict(in_channels=32),
)
