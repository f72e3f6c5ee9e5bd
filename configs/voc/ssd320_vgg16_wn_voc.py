# The paper does not say whether WN is in the predictors, too: they are plain here,
# as in every row but PWS. Filters of norm 1 could not scale their scores.
_base_ = '../_base_/ssd320_voc0712.py'

conv_cfg = dict(type='WN', g='fixed')  # g = 1

model = dict(backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg))
