_base_ = 'resnet20_normal_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [dict(type='PWSAlphaInitHook'), dict(type='DivergenceHook', interval=1)]
