_base_ = 'convpool_normal_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
