# g is fixed to 1. The predictors are plain convolutions, as in every row but PWS:
# with filters of norm 1 they could not scale their scores.
_base_ = '../_base_/ssd96_digits.py'

conv_cfg = dict(type='WN', g='fixed')

model = dict(backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg))
