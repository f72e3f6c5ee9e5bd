# NF-ResNet: scaled weight standardization, calculated variances, AGC
_base_ = 'resnet20_normal_digits.py'

# All branches learn from the first step. SkipInit, which starts them at 0, is for
# trainings of more than these 660 steps.
model = dict(
    backbone=dict(type='NFCifarResNet', conv_cfg=dict(type='ScaledWS'), skip_init=1.0)
)

# As in the source: no weight decay for biases and gains, no clipping of the last layer
optim_wrapper = dict(
    type='AGCOptimWrapper',
    agc=dict(clipping=0.08, exclude='head.'),
    paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={'gain': dict(decay_mult=0.0)}),
)
