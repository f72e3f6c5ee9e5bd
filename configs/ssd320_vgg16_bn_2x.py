_base_ = 'ssd320_vgg16_bn_1x.py'

train_cfg = dict(max_epochs=150)
param_scheduler = [dict(type='MultiStepLR', milestones=[60, 100, 140], gamma=0.1)]
