# The backbone of the Mask R-CNN configs, as a classifier. Of its norm layers, LN
# after the stem and before the pooling, the detectors have the first.
_base_ = '../_base_/imagenet_r50.py'

ln = dict(type='GN', num_groups=1)

model = dict(
    backbone=dict(
        conv_cfg=dict(type='PWS', gamma=1e-4), stem_norm_cfg=ln, out_norm_cfg=ln
    )
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [dict(type='PWSAlphaInitHook')]
