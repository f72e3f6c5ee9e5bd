# Plain convolutions, without any normalization
_base_ = '../_base_/ssd96_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='Conv2d')))
