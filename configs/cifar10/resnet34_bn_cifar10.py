# ResNet-34 as in the repository of the paper's authors, which has 95.3 % for BN:
# https://github.com/lyxzzz/PWSConv. The identity path carries the sum before the ReLU.
_base_ = '../_base_/cifar10.py'

model = dict(
    backbone=dict(
        type='PWSCifarResNet',
        depth=34,
        base_channels=64,
        conv_cfg=dict(type='Conv2d'),
        norm_cfg=dict(type='BN'),
        pre_activation=True,
        zero_init_residual=True,  # without norm layers it does nothing
    ),
    head=dict(in_channels=512),
)

param_scheduler = [dict(type='MultiStepLR', milestones=[100, 150], gamma=0.1)]
