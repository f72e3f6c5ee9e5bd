_base_ = 'convpool_normal_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='BN')))
