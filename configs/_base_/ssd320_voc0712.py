# SSD320 from scratch on Pascal VOC, trained on 07+12 trainval and tested on 07 test,
# as in Tables 1 and 2.
#
# 240 epochs; each uses the 16,551 images once. No warm-up. Table 1 has the same
# learning rate and other batches, for example train_dataloader.batch_size=2.
_base_ = 'ssd320_vgg16_1x.py'

channels = (512, 1024, 512, 256, 256, 256)
dataset_type = 'VOCDataset'
data_root = 'data/VOCdevkit/'

model = dict(
    neck=dict(
        out_channels=channels,
        level_strides=(2, 2, 1, 1),
        level_paddings=(1, 1, 0, 0),
    ),
    bbox_head=dict(
        in_channels=channels,
        num_classes=20,
        anchor_generator=dict(
            _delete_=True,
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[8, 16, 32, 64, 107, 320],
            min_sizes=[32, 64, 118.4, 172.8, 227.2, 281.6],
            max_sizes=[64, 118.4, 172.8, 227.2, 281.6, 336],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        ),
    ),
)

train_dataloader = dict(
    # BN cannot train on a last batch of one image: a 1x1 map has one value a channel.
    drop_last=True,
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['dataset_type'],  # the two datasets differ in the year
        datasets=[
            dict(
                type=dataset_type,
                data_root=data_root,
                ann_file='VOC2007/ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root='VOC2007/'),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline={{_base_.train_pipeline}},
            ),
            dict(
                type=dataset_type,
                data_root=data_root,
                ann_file='VOC2012/ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root='VOC2012/'),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline={{_base_.train_pipeline}},
            ),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
    dict(type='FMeasureMetric'),
]
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=240, val_interval=10)
param_scheduler = [dict(type='MultiStepLR', milestones=[90, 170], gamma=0.1)]
default_hooks = dict(checkpoint=dict(interval=10))
