# 8 groups: a quarter of the 32, as of the channels
_base_ = 'convpool_normal_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=8)))
