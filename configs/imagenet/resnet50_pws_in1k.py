# The backbone of the Mask R-CNN configs, as an ImageNet classifier: batch 64,
# 8 GPUs x 8 images. Needs mmpretrain.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['mmpretrain', 'pws_mmdet'], allow_failed_imports=False)
runner_type = 'PWSRunner'

gn1 = dict(type='GN', num_groups=1)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PWSResNet',
        depth=50,
        conv_cfg=dict(type='PWS', gamma=1e-4),
        stem_norm_cfg=gn1,
        out_norm_cfg=gn1,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)

train_dataloader = dict(batch_size=8)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [dict(type='MultiStepLR', milestones=[30, 60, 90], gamma=0.1)]
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'.alpha': dict(decay_mult=0.0)}),
)
custom_hooks = [dict(type='PWSAlphaInitHook')]
auto_scale_lr = dict(enable=False, base_batch_size=64)
