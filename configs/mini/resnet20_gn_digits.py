# 4 groups: two of the 8 channels of the first stage in each, as for CIFAR-10
_base_ = 'resnet20_normal_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=4)))
