_base_ = 'ssd96_vgg16_normal_digits.py'

# 8 groups, not 32: the narrowest layers have 16 channels
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)

model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
