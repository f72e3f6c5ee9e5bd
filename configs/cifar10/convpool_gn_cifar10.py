_base_ = 'convpool_normal_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
