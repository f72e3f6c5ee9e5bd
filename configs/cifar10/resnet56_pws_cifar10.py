_base_ = 'resnet56_normal_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='PWS', gamma=1e-3)))

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.alpha': dict(decay_mult=0.0)}))
# The identity paths add up: without it, 27 blocks would raise the variance 2^27-fold.
custom_hooks = [dict(type='PWSAlphaInitHook'), dict(type='DivergenceHook')]
