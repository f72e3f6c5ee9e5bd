# Starts from the weights that everybody has, those of torchvision's ResNet-50, whose
# blocks the backbone has here. As named, they are converted without data when the
# training starts; better is to convert them once, on a few of its images:
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
        # converted, a stem loses more than all layers behind it: docs/convert.md
        stem_conv_cfg=dict(type='BiasConv2d'),
        init_cfg=dict(type='PWSPretrained', checkpoint='torchvision://resnet50'),
    ),
)
# A tenth of BN's rate, for the same 16 images (auto_scale_lr.base_batch_size): small
# converted networks lost up to 7 AP at the full one, as nothing normalizes.
optim_wrapper = dict(optimizer=dict(lr=0.002))
