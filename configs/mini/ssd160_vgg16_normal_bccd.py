# Plain convolutions, without any normalization
_base_ = '../_base_/ssd160_bccd.py'

model = dict(backbone=dict(conv_cfg=None))
