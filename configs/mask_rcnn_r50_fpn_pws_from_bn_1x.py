# Starts from torchvision's ResNet-50, and has its blocks. With keep_mean, the converted
# network computes what it computed with BN.
_base_ = 'mask_rcnn_r50_fpn_pws_1x.py'

model = dict(
    backbone=dict(
        conv_cfg=dict(keep_mean=True),
        pre_activation=False,
        stem_norm_cfg=None,
        init_cfg=dict(type='PWSPretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(conv_cfg=dict(keep_mean=True)),
    roi_head=dict(mask_head=dict(conv_cfg=dict(keep_mean=True))),
)
