"""Convert the checkpoint of a network with BN to a checkpoint with PWS."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, write_checkpoint
from ..checkpoint.read import weights_of
from ..utils.config import build_model, dict_at, read_config
from ..utils.files import check_new_path
from .bn_weights import load_bn_weights
from .layer import ConversionReport
from .norm_free_config import bn_eps_of


@dataclass
class ConvertedCheckpoint:
    """A checkpoint that ``convert_checkpoint`` wrote.

    Attributes:
        path: The checkpoint.
        part: 'network', or 'backbone' if it holds the weights of the backbone only.
        report: A record of each convolution.
        unused: Keys of weights that were not used.
    """

    path: Path
    part: str
    report: ConversionReport
    unused: list[str]

    def __str__(self) -> str:
        lines = [str(self.report), f'written: {self.path}, the {self.part}']
        if self.unused:
            lines.append(f'not used: {", ".join(self.unused)}')
        return '\n'.join(lines)


def convert_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    bn_eps: float | None = None,
    conv_ws: bool | None = None,
    cfg_options: Mapping | None = None,
) -> ConvertedCheckpoint:
    """Convert a checkpoint of a network with BN for the same network with PWS.

    If the checkpoint holds only a backbone, such as torchvision's, the new one is for
    ``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` of the backbone.

    Args:
        config: The config of the norm-free network.
        checkpoint: A path, a URL, or a name such as 'torchvision://resnet50'.
        out: The new file, *.pth.
        bn_eps: eps of the BN layers; by default that in a ``config`` which
            ``make_norm_free`` wrote, or else 1e-5.
        conv_ws: BN follows MMCV's ConvWS; by default as in the backbone's ``init_cfg``.
        cfg_options: Changes to the config, as in MMDetection's programs.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If there is no such config or checkpoint.
        OSError: If ``out`` cannot be written, or the checkpoint cannot be downloaded.
        RuntimeError: If the checkpoint is damaged or holds more than data.
        ValueError: If something does not fit.
    """
    path = check_new_path(out, '.pth')
    cfg = read_config(config, cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    weights, dataset_meta = read_checkpoint(checkpoint)
    bn_eps = bn_eps_of(cfg.model) if bn_eps is None else bn_eps
    conv_ws = _conv_ws_of(cfg) if conv_ws is None else conv_ws
    model = build_model(config, cfg)
    target = choose_target(model, weights)
    if target is not model:
        weights = _weights_of_backbone(weights)
    try:
        report, unused = load_bn_weights(target, weights, bn_eps, conv_ws)
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None
    content = dict(state_dict=target.state_dict())
    if target is model and dataset_meta is not None:
        content['meta'] = dict(dataset_meta=dataset_meta)
    write_checkpoint(content, path)
    part = 'network' if target is model else 'backbone'
    return ConvertedCheckpoint(path, part, report, unused)


def _conv_ws_of(cfg: Config) -> bool:
    start = dict_at(cfg, 'model', 'backbone', 'init_cfg') or {}
    return start.get('conv_ws', False)


def choose_target(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network, or its backbone if the weights are of the backbone only."""
    backbone = getattr(model, 'backbone', None)
    others = {
        key
        for key in model.state_dict()
        if key.endswith('.weight') and not key.startswith('backbone.')
    }
    return model if backbone is None or others & set(weights) else backbone


def _weights_of_backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    in_detector = any(key.startswith('backbone.') for key in weights)
    return weights_of(weights, 'backbone.') if in_detector else weights
