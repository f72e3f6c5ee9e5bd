# g starts at 1 and is trained
_base_ = 'convpool_normal_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='WN', g='trained')))
