_base_ = 'resnet20_normal_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.alpha': dict(decay_mult=0.0)}))
custom_hooks = [dict(type='PWSAlphaInitHook'), dict(type='DivergenceHook', interval=1)]
