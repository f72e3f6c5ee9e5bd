import inspect

from mmcv.cnn import build_conv_layer
from mmdet.models.dense_heads import SSDHead
from mmengine.registry import MODELS
from torch import nn

from ...layers import PWSConv2d
from ...utils.config import registered


@MODELS.register_module(force=True)
class PWSSSDHead(SSDHead):
    """SSD head whose predictors are built from ``conv_cfg``, too.

    PWS predictors have one alpha and one beta for each layer, unless ``conv_cfg``
    names another mode, or has ``keep_mean``: then they have one for each filter. All
    other arguments, the shapes and the losses are those of MMDetection's ``SSDHead``.
    In MMDetection 3.3.0 that class cannot predict, because it lacks the attribute
    ``loss_cls`` that the prediction reads; this class has the attribute.

    Source: "Object Detection in VOC07" and the code of the paper's authors.
    """

    loss_cls = None  # SSDHead computes a plain cross-entropy, without a module

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.conv_cfg is None:
            return
        conv_cfg = dict(self.conv_cfg)
        conv_type = registered(conv_cfg)
        if inspect.isclass(conv_type) and issubclass(conv_type, PWSConv2d):
            # With one alpha for a layer, weights that were trained with BN do not fit.
            per_filter = conv_cfg.get('keep_mean', False)
            conv_cfg.setdefault('alpha', 'channel' if per_filter else 'layer')
        for predictors in (self.cls_convs, self.reg_convs):
            for layers in predictors:
                conv: nn.Conv2d = layers[-1]
                layers[-1] = build_conv_layer(
                    conv_cfg,
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,
                    padding=conv.padding,
                )
