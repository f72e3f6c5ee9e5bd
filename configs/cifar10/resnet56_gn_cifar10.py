# 32 groups need 32 channels, and of the first stage's 16 they would make IN:
# 8 groups leave two channels and more to each
_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
