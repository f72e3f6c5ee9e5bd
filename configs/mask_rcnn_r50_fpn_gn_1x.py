_base_ = '_base_/mask_rcnn_r50_fpn_1x.py'

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)

model = dict(
    # the mean and deviation that Detectron's GN weights were trained with
    data_preprocessor=dict(
        mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False
    ),
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_gn'
        ),
    ),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(mask_head=dict(norm_cfg=norm_cfg)),
)
