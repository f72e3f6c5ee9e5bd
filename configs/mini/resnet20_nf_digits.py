# NF-ResNet: scaled weight standardization, SkipInit, calculated variances, AGC
_base_ = 'resnet20_normal_digits.py'

model = dict(backbone=dict(type='NFCifarResNet', conv_cfg=dict(type='ScaledWS')))

# As in the source: no weight decay for biases and gains, no clipping of the last layer
optim_wrapper = dict(
    type='AGCOptimWrapper',
    agc=dict(clipping=0.08, exclude='head.'),
    paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={'gain': dict(decay_mult=0.0)}),
)
