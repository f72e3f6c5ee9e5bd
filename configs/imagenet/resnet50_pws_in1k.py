# The backbone of the Mask R-CNN configs, as a classifier. It has two norm layers: LN
# after the stem, as in the detectors, and LN before the pooling.
_base_ = '../_base_/imagenet_r50.py'

ln = dict(type='GN', num_groups=1)

model = dict(
    backbone=dict(
        conv_cfg=dict(type='PWS', gamma=1e-4), stem_norm_cfg=ln, out_norm_cfg=ln
    )
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
custom_hooks = [dict(type='PWSAlphaInitHook')]
