# 4 groups: the 8 channels of the first stage in twos, as in CIFAR-10's config
_base_ = 'resnet20_normal_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=4)))
