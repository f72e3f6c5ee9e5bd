_base_ = '../_base_/ssd160_bccd.py'

conv_cfg = dict(type='PWS', gamma=1e-3)

model = dict(
    backbone=dict(conv_cfg=conv_cfg),
    neck=dict(conv_cfg=conv_cfg),
    bbox_head=dict(conv_cfg=conv_cfg),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
