# The control as MMDetection has it: BN in the backbone, frozen at its ImageNet
# statistics, and no norm elsewhere.
_base_ = '_base_/mask_rcnn_r50_fpn_1x.py'
