# Plain convolutions, without any normalization. The paper does not tell the depth:
# with 56 layers, BN's error is about the paper's.
_base_ = '../_base_/cifar10.py'

model = dict(
    backbone=dict(type='PWSCifarResNet', depth=56, conv_cfg=dict(type='Conv2d')),
    head=dict(in_channels=64),
)
