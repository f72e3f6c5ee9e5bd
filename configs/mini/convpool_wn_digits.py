# g starts at 1 and is trained
_base_ = 'convpool_normal_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='WN', g='trained')))
