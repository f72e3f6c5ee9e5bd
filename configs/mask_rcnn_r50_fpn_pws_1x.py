# The paper's network and schedule. The weights that it starts from are not published:
# mask_rcnn_r50_fpn_pws_from_bn_1x.py starts from torchvision's.
_base_ = '_base_/mask_rcnn_r50_fpn_1x.py'

conv_cfg = dict(type='PWS', gamma=1e-4)
head_conv_cfg = dict(type='PWS', gamma=0.1, relative_gamma=True)

model = dict(
    backbone=dict(
        _delete_=True,
        type='PWSResNet',
        depth=50,
        conv_cfg=conv_cfg,
        # the only layer that normalizes
        stem_norm_cfg=dict(type='GN', num_groups=1),
        frozen_stages=1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/resnet50_pws_in1k.pth'
        ),
    ),
    neck=dict(conv_cfg=head_conv_cfg),
    roi_head=dict(mask_head=dict(conv_cfg=head_conv_cfg)),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [dict(type='PWSAlphaInitHook')]
