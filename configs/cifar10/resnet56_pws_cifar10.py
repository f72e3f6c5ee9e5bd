_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
# the variance adds up along the identity paths: let each branch start at one of 2
custom_hooks = [dict(type='PWSAlphaInitHook')]
