# A starting point; it is no row of the paper. PWS is in the backbone, the FPN and the
# head; the predictors are plain convolutions. The learning rate is 0.01 for 8 GPUs x 2
# images.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['pws_mmdet'], allow_failed_imports=False)
runner_type = 'PWSRunner'

conv_cfg = dict(type='PWS', gamma=1e-4)
head_conv_cfg = dict(type='PWS', gamma=0.1, relative_gamma=True)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PWSResNet',
        depth=50,
        conv_cfg=conv_cfg,
        stem_norm_cfg=dict(type='GN', num_groups=1),
        frozen_stages=1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/resnet50_pws_in1k.pth'
        ),
    ),
    neck=dict(conv_cfg=head_conv_cfg),
    bbox_head=dict(conv_cfg=head_conv_cfg),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
default_hooks = dict(sampler_seed=dict(type='EpochSeedHook'))
custom_hooks = [dict(type='PWSAlphaInitHook')]
