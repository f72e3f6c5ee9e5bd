"""The ``init_cfg`` that starts a network with PWS from any weights."""

from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..checkpoint import load_strictly, read_checkpoint
from ..utils.names import first_names
from .bn_weights import BN_EPS, is_pws, load_bn_weights


@WEIGHT_INITIALIZERS.register_module('PWSPretrained', force=True)
class PWSPretrainedInit:
    """``init_cfg=dict(type='PWSPretrained', checkpoint=...)``: load weights.

    A checkpoint of a network with PWS is loaded. A checkpoint of the same network with
    BN is converted; the network then computes what it computed with BN. For that its
    PWS convolutions need ``keep_mean``.

    Args:
        checkpoint: A path, a URL, or a name that MMEngine knows, such as
            'torchvision://resnet50'.
        prefix: Take only the weights below this name, such as 'backbone.'.
        map_location: Where to load the weights, as in ``torch.load``.
        bn_eps: eps of the BN layers of the checkpoint, if it has BN.
        conv_ws: The checkpoint is of a network with BN that has MMCV's ConvWS where
            this network has PWS.

    Raises:
        ValueError: If the checkpoint does not fit the network, or has GN or another
            norm that cannot be converted.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: str = 'cpu',
        bn_eps: float = BN_EPS,
        conv_ws: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        self.bn_eps = bn_eps
        self.conv_ws = conv_ws

    def __call__(self, module: nn.Module) -> None:
        weights = read_checkpoint(
            self.checkpoint, self.prefix, self.map_location
        ).weights
        try:
            if is_pws(weights):
                unused = load_strictly(module, weights, allow_unused=True)
            else:
                unused = self._convert(module, weights)
        except ValueError as e:
            raise ValueError(f'{self.checkpoint}: {e}') from None
        self._tell_of_unused(unused)
        # Without this flag, MMEngine initializes the children afterwards.
        for child in module.children():
            child.is_init = True
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())

    def _convert(self, module: nn.Module, weights: dict[str, Tensor]) -> list[str]:
        report, unused = load_bn_weights(
            module, weights, bn_eps=self.bn_eps, conv_ws=self.conv_ws
        )
        has_bn = any(key.endswith('.running_mean') for key in weights)
        print_log(
            f'{self.checkpoint} is of a network with{"" if has_bn else "out"} BN: '
            f'{report.summary()}',
            logger='current',
        )
        return unused

    def _tell_of_unused(self, keys: Sequence[str]) -> None:
        if keys:
            print_log(
                f'{self.checkpoint}: no use for {first_names(keys)}', logger='current'
            )

    def _get_init_info(self) -> str:
        return f'{type(self).__name__}: load from {self.checkpoint}'
