_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
# Variances add up along identity paths: each branch starts with a variance of 2.
custom_hooks = [dict(type='PWSAlphaInitHook')]
