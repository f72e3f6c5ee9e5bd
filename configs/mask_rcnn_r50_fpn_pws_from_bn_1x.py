# Starts from torchvision's ResNet-50, and has its blocks. The training converts these
# weights at its start, without data. It is better to convert them beforehand, with a
# few images of the training set:
#   python tools/model_converters/bn_to_pws.py \
#       configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py torchvision://resnet50 \
#       checkpoints/resnet50_pws_from_bn.pth --calibrate data/coco/train2017
#   tools/dist_train.sh configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py 8 --cfg-options \
#       model.backbone.init_cfg.checkpoint=checkpoints/resnet50_pws_from_bn.pth
_base_ = 'mask_rcnn_r50_fpn_pws_1x.py'

model = dict(
    backbone=dict(
        pre_activation=False,
        stem_norm_cfg=None,
        # A converted stem loses more than all other layers: docs/convert.md
        stem_conv_cfg=dict(type='BiasConv2d'),
        init_cfg=dict(type='PWSPretrained', checkpoint='torchvision://resnet50'),
    ),
)
# A tenth of BN's learning rate for the same 16 images (auto_scale_lr.base_batch_size).
# Nothing normalizes: at the full rate small converted networks lost up to 7 AP.
optim_wrapper = dict(optimizer=dict(lr=0.002))
