# The paper says only "ResNet-50" about this network. Here C3 to C5 replace the first
# three of VGG's six levels, and the same extra levels follow. The blocks have the order
# of the authors' ResNet, with BN, too, so that the two rows differ in the norm alone.
_base_ = 'ssd320_voc0712.py'

channels = (512, 1024, 2048, 256, 256, 256)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PWSResNet',
        depth=50,
        stem_norm_cfg=None,
        out_indices=(1, 2, 3),
        norm_eval=False,
    ),
    neck=dict(
        in_channels=channels[:3],
        out_channels=channels,
        level_strides=(2, 1, 1),
        level_paddings=(1, 0, 0),
    ),
    bbox_head=dict(in_channels=channels),
)
