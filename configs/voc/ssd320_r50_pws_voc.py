_base_ = '../_base_/ssd320_r50_voc0712.py'

conv_cfg = dict(type='PWS', gamma=1e-3)

model = dict(
    backbone=dict(conv_cfg=conv_cfg),
    neck=dict(conv_cfg=conv_cfg),
    bbox_head=dict(conv_cfg=conv_cfg),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
# Variances add up along identity paths: each branch starts with a variance of 2.
custom_hooks = [dict(type='PWSAlphaInitHook')]
