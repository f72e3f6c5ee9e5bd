# The small SSD on a ResNet-18 of half the width. C3 to C5 are the first levels.
_base_ = 'ssd96_digits.py'

channels = (64, 128, 256, 64)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PWSResNet',
        depth=18,
        base_channels=32,
        stem_norm_cfg=None,
        out_indices=(1, 2, 3),
        norm_eval=False,
    ),
    neck=dict(
        in_channels=channels[:3],
        out_channels=channels,
        level_strides=(2,),
        level_paddings=(1,),
    ),
    bbox_head=dict(in_channels=channels),
)
