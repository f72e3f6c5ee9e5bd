# A small dataset in the place of CIFAR-10, for a laptop: the 16x16 images that
# tools/dataset_converters/digits_to_imagefolder.py writes. The settings are those of
# the paper, but the training is shorter.
_base_ = 'cifar10.py'

data_root = 'data/digits_imagefolder'

model = dict(data_preprocessor=dict(mean=[78.0] * 3, std=[81.0] * 3))

test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomCrop', crop_size=16, padding=2
    ),  # no flip: digits are not symmetric
    dict(type='PackInputs'),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='test',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# The proportions of the paper: 200 epochs with steps at 100, 150 and 180
train_cfg = dict(max_epochs=60, val_interval=6)
param_scheduler = [dict(type='MultiStepLR', milestones=[30, 45, 54], gamma=0.1)]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=6, max_keep_ckpts=1)
)
custom_hooks = [dict(type='DivergenceHook', interval=1)]
randomness = dict(seed=0)
