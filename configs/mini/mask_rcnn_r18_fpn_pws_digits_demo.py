# The network of `make demo`: a shorter schedule, and double weight for the mask loss,
# which then needs fewer epochs
_base_ = 'mask_rcnn_r18_fpn_pws_digits.py'

model = dict(roi_head=dict(mask_head=dict(loss_mask=dict(loss_weight=2.0))))

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True),
]
# for the report at the end of the demo
default_hooks = dict(variance=dict(type='VarianceMonitorHook', interval=30))
