# 8 groups, not 32: the first stage has 16 channels, two for each group.
_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
