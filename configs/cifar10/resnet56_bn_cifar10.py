_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='BN')))
