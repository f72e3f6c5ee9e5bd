_base_ = 'ssd160_vgg16_normal_bccd.py'

# 8 groups: a quarter of the usual 32, as the narrowest layers have 16 channels
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)

model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
