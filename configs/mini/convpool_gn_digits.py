# 8 groups: a quarter of 32, because the network has a quarter of the channels
_base_ = 'convpool_normal_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
