# g is fixed to 1. The predictors are plain convolutions, as in every row but PWS:
# filters of norm 1 cannot scale the scores.
_base_ = '../_base_/ssd96_digits.py'

conv_cfg = dict(type='WN', g='fixed')

model = dict(backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg))
