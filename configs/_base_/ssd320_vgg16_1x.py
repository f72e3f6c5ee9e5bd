# SSD320 with a VGG-16 trained from scratch on COCO, batch 16, as in the paper
_base_ = [
    'mmdet::_base_/models/ssd300.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['pws_mmdet'], allow_failed_imports=False)
runner_type = 'PWSRunner'

mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]
channels = (512, 1024, 512, 256, 256)
scale = (320, 320)
# He normal for all plain convolutions, as in the paper. PWS has it by default.
he = dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu')

model = dict(
    # A norm-free network needs an input of unit variance: no layer rescales it.
    data_preprocessor=dict(mean=mean, std=std),
    backbone=dict(_delete_=True, type='PWSVGG', depth=16),
    neck=dict(
        out_channels=channels,
        level_strides=(2, 2, 1),
        level_paddings=(1, 1, 0),
        l2_norm_scale=None,
        init_cfg=he,
    ),
    bbox_head=dict(
        type='PWSSSDHead',
        in_channels=channels,
        init_cfg=he,
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
    ),
    train_cfg=dict(assigner=dict(neg_iou_thr=0.4)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(type='Expand', mean=mean, to_rgb=True, ratio_range=(1, 4)),
    dict(
        type='MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3
    ),
    dict(type='Resize', scale=scale, keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 1x means 80 epochs here. Each uses the images of train2017 once. No warm-up.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=80, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', milestones=[30, 50, 70], gamma=0.1)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-2, momentum=0.9, weight_decay=5e-4),
)
default_hooks = dict(
    checkpoint=dict(interval=5, max_keep_ckpts=3),
    sampler_seed=dict(type='EpochSeedHook'),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
