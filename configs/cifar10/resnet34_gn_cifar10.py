# 94.2 % in the repository of the paper's authors
_base_ = 'resnet34_bn_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
