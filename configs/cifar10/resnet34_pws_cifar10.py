# Two norm layers: LN after the stem, and LN before the last ReLU. alpha starts at 1.
# 95.1 % in the repository of the paper's authors
_base_ = 'resnet34_bn_cifar10.py'

ln = dict(type='GN', num_groups=1)

model = dict(
    backbone=dict(
        conv_cfg=dict(type='PWS', gamma=1e-3),
        norm_cfg=None,
        stem_norm_cfg=ln,
        out_norm_cfg=ln,
    )
)

optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')
