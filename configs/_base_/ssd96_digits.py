# An SSD of a quarter of the width, for 96x96 pixels. The schedule has the proportions
# of the paper's schedule on VOC, which is 240 epochs with steps at 90 and 170.
_base_ = ['digits.py', 'mmdet::_base_/default_runtime.py']

channels = (128, 256, 128, 64)
# He normal for all plain convolutions, as in the paper. PWS has it by default.
he = dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu')

model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type='PWSVGG', depth=16, width=0.25),
    neck=dict(
        type='SSDNeck',
        in_channels=(128, 256),
        out_channels=channels,
        level_strides=(2, 2),
        level_paddings=(1, 1),
        l2_norm_scale=None,
        init_cfg=he,
    ),
    bbox_head=dict(
        type='PWSSSDHead',
        in_channels=channels,
        num_classes=10,
        init_cfg=he,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=2,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=200,
    ),
)

train_dataloader = dict(batch_size=16)
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file={{_base_.val_evaluator.ann_file}},
        metric='bbox',
    ),
    dict(type='FMeasureMetric'),
]
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', milestones=[3, 6], gamma=0.1)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-2, momentum=0.9, weight_decay=5e-4),
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
    sampler_seed=dict(type='EpochSeedHook'),
)
custom_hooks = [dict(type='DivergenceHook', interval=1)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
