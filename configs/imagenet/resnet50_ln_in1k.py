# GN with one group is LN over channels, height and width.
_base_ = 'resnet50_gn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(num_groups=1)))
