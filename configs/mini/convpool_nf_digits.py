# Scaled weight standardization and AGC, as in NF-ResNets
_base_ = 'convpool_normal_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='ScaledWS')))

# As in the source: no weight decay for biases and gains, no clipping of the last layer
optim_wrapper = dict(
    type='AGCOptimWrapper',
    agc=dict(clipping=0.08, exclude='head.'),
    paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={'gain': dict(decay_mult=0.0)}),
)
