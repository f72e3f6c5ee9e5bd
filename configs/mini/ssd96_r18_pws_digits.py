_base_ = '../_base_/ssd96_r18_digits.py'

conv_cfg = dict(type='PWS', gamma=1e-3)

model = dict(
    backbone=dict(conv_cfg=conv_cfg),
    neck=dict(conv_cfg=conv_cfg),
    bbox_head=dict(conv_cfg=conv_cfg),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [*_base_.custom_hooks, dict(type='PWSAlphaInitHook')]
