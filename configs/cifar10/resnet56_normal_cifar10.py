# Plain convolutions, without any normalization. The paper does not give the depth. With
# 56 layers the error of BN is about that of the paper.
_base_ = '../_base_/cifar10.py'

model = dict(
    backbone=dict(type='PWSCifarResNet', depth=56, conv_cfg=dict(type='Conv2d')),
    head=dict(in_channels=64),
)
