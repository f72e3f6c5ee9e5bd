_base_ = '_base_/ssd320_vgg16_1x.py'

# The paper's gamma for a learning rate of 1e-2. It is 1e-5 for 1e-3.
conv_cfg = dict(type='PWS', gamma=1e-3)

model = dict(
    backbone=dict(conv_cfg=conv_cfg),
    neck=dict(conv_cfg=conv_cfg),
    bbox_head=dict(conv_cfg=conv_cfg),
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
