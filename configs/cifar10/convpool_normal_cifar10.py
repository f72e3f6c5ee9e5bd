# Plain convolutions, without any normalization
_base_ = '../_base_/cifar10.py'

model = dict(
    backbone=dict(type='ConvPoolCNN', width=1.0, conv_cfg=dict(type='Conv2d')),
    head=dict(in_channels=192),
)
