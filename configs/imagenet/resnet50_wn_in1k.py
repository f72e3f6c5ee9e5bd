# It has the norm layers of the PWS network. g starts at 1 and is trained.
_base_ = '../_base_/imagenet_r50.py'

ln = dict(type='GN', num_groups=1)

model = dict(
    backbone=dict(
        conv_cfg=dict(type='WN', g='trained'), stem_norm_cfg=ln, out_norm_cfg=ln
    )
)
