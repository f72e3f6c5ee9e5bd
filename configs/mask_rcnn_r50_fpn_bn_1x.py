# The control is MMDetection's own network: BN in the backbone, frozen at the statistics
# of ImageNet, and no norm layer elsewhere.
_base_ = '_base_/mask_rcnn_r50_fpn_1x.py'
