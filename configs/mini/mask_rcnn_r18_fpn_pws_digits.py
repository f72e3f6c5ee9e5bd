# Without any layer that normalizes
_base_ = '../_base_/mask_rcnn_r18_fpn_digits.py'

conv_cfg = dict(type='PWS', gamma=1e-4)
head_conv_cfg = dict(type='PWS', gamma=0.1, relative_gamma=True)

model = dict(
    backbone=dict(conv_cfg=conv_cfg),
    neck=dict(conv_cfg=head_conv_cfg),
    roi_head=dict(mask_head=dict(conv_cfg=head_conv_cfg)),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [*_base_.custom_hooks, dict(type='PWSAlphaInitHook')]
