# The paper does not say whether the predictors have WN. Here they are plain, as in
# every row but PWS: filters of norm 1 cannot scale the scores.
_base_ = '../_base_/ssd320_voc0712.py'

conv_cfg = dict(type='WN', g='fixed')  # g = 1

model = dict(backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg))
