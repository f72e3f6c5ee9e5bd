# MMDetection's Mask R-CNN, R-50-FPN, 1x on COCO: 8 GPUs x 2 images, lr 0.02
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['pws_mmdet'], allow_failed_imports=False)
runner_type = 'PWSRunner'
default_hooks = dict(sampler_seed=dict(type='EpochSeedHook'))
