# A Mask R-CNN for a laptop's CPU, 2 processes x 4 images, with plain convolutions. The
# schedule has the proportions of 1x, which is 12 epochs with steps at 8 and 11.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    'digits.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='PWSResNet',
        depth=18,
        base_channels=32,
        stem_norm_cfg=None,
        norm_eval=False,
    ),
    neck=dict(
        in_channels=[32, 64, 128, 256],
        out_channels=64,
        # He normal, which is the default of PWS convolutions
        init_cfg=dict(
            type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu'
        ),
    ),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

train_dataloader = dict(batch_size=4)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(
        type='MultiStepLR',
        milestones=[4, 5.5],
        gamma=0.1,
        convert_to_iter_based=True,  # for the step at half an epoch
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=2e-2, momentum=0.9, weight_decay=1e-4),
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
    sampler_seed=dict(type='EpochSeedHook'),
)
custom_hooks = [dict(type='DivergenceHook', interval=1)]
auto_scale_lr = dict(enable=False, base_batch_size=8)
