"""Convert the checkpoint of a network with BN to a checkpoint with PWS."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, write_checkpoint
from ..checkpoint.read import weights_of
from ..utils.config import build_model, describe, read_config
from ..utils.files import check_new_path
from ..utils.names import first_names
from .bn_weights import load_bn_weights
from .images import dict_at, find_images, load_images
from .layer import ConversionReport
from .norm_free_config import bn_eps_of
from .options import ConversionOptions


@dataclass
class ConvertedCheckpoint:
    """A checkpoint that :func:`convert_checkpoint` wrote.

    Attributes:
        path: The checkpoint.
        part: 'network', or 'backbone' if it holds the weights of the backbone only.
        images: The number of calibration images; 0 without images.
        report: A record of each convolution, in the order of conversion.
        unused: Keys of weights that were not used.
    """

    path: Path
    part: str
    images: int
    report: ConversionReport
    unused: list[str]

    def __str__(self) -> str:
        written = f'written: {self.path}, the {self.part}, '
        if self.images:
            written += f'with {self.images} images'
        else:
            written += 'WITHOUT images: --calibrate loses far less'
        lines = [str(self.report), written]
        if self.unused:
            lines.append(f'not used: {", ".join(self.unused)}')
        return '\n'.join(lines)


def convert_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    calibrate: str | Path | None = None,
    *,
    num_images: int = 32,
    batch_size: int = 4,
    bn_eps: float | None = None,
    conv_ws: bool | None = None,
    device: str = 'cpu',
    cfg_options: Mapping | None = None,
    force: bool = False,
    **options: Any,
) -> ConvertedCheckpoint:
    """Convert a checkpoint of a network with BN for the same network with PWS.

    If the checkpoint holds only a backbone, such as torchvision's, the new one is for
    ``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` of the backbone.

    Args:
        config: The config of the norm-free network.
        checkpoint: A path, a URL, or a name such as 'torchvision://resnet50'.
        out: The new file, *.pth.
        calibrate: A folder of images, or a config with a training set. The images pass
            the test pipeline of ``config``. None loses more.
        num_images, batch_size: The number of images, in all and in a batch.
        bn_eps: eps of the BN layers; by default that in a ``config`` which
            ``make_norm_free`` wrote, or else 1e-5.
        conv_ws: BN follows MMCV's ConvWS; by default as in the backbone's ``init_cfg``.
        device: Where to run the network.
        cfg_options: Changes to the config, as in MMDetection's programs.
        force: Write the file even if the network is useless.
        **options: See :class:`ConversionOptions`. ``seed`` also chooses the images.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If there is no such config, checkpoint or folder.
        OSError: If ``out`` cannot be written, or the checkpoint cannot be downloaded.
        RuntimeError: If the checkpoint is damaged or holds more than data.
        ValueError: If something does not fit, or the new network is useless.
    """
    seed = ConversionOptions(**options).seed
    path = check_new_path(out, '.pth')
    cfg = read_config(config, cfg_options)
    _check(cfg, config, calibrate, batch_size, device)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    weights, dataset_meta = read_checkpoint(checkpoint)
    images = find_images(calibrate, num_images, seed) if calibrate else []
    bn_eps = bn_eps_of(cfg.model) if bn_eps is None else bn_eps
    conv_ws = _conv_ws_of(cfg) if conv_ws is None else conv_ws
    model = build_model(config, cfg).to(device)
    model.eval()
    target = choose_target(model, weights)
    if target is not model:
        weights = _weights_of_backbone(weights)
    batches = _load_batches(cfg, images, batch_size, model, target)
    try:
        report, unused = load_bn_weights(
            target, weights, batches, bn_eps, conv_ws, **options
        )
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None
    _check_outputs(report, force)
    content = dict(state_dict={k: v.cpu() for k, v in target.state_dict().items()})
    if target is model and dataset_meta is not None:
        content['meta'] = dict(dataset_meta=dataset_meta)
    write_checkpoint(content, path)
    part = 'network' if target is model else 'backbone'
    return ConvertedCheckpoint(path, part, len(images), report, unused)


def _check(
    cfg: Config,
    config: str | Path,
    calibrate: str | Path | None,
    batch_size: int,
    device: str,
) -> None:
    """Raise a ValueError if an argument is wrong, before anything slow begins."""
    if batch_size < 1:
        raise ValueError(f'batch_size must be 1 or more, got {batch_size}')
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as e:
        raise ValueError(f'device {device}: {describe(e)}') from e
    test_set = dict_at(cfg, 'test_dataloader', 'dataset')
    if calibrate and 'pipeline' not in (test_set or {}):
        raise ValueError(
            f'{config} has no test_dataloader with a dataset, whose pipeline the '
            'calibration images pass'
        )


def _check_outputs(report: ConversionReport, force: bool) -> None:
    """Raise a ValueError if the converted network is useless; it says what helps."""
    if force or report.agreement is None or not report.agreement.is_lost:
        return
    worst = sorted(report, key=lambda layer: layer.loss or 0, reverse=True)
    losses = [f'{layer.name} ({layer.loss:.2f})' for layer in worst if layer.loss]
    raise ValueError(
        'the converted network has little to do with the original one: '
        f'{report.summary()}. Zero mean costs most in {first_names(losses)}. Make '
        'these layers plain in the config, take more images (num_images), or '
        'convert_to_pws in Python, which chooses the layers that stay plain. To '
        'write the file anyway, for training, use --force'
    )


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


def _load_batches(
    cfg: Config, images: list[str], size: int, model: nn.Module, target: nn.Module
) -> list[Any] | None:
    """Load images as the network, or its backbone, takes them; None without images."""
    if not images:
        return None
    batches = load_images(cfg, images, size)
    if target is model:
        return batches
    return [_preprocess(model, batch) for batch in batches]


def _preprocess(model: nn.Module, batch: dict) -> Tensor:
    """Normalize and stack the images of a batch, as the detector does."""
    x = model.data_preprocessor(batch, False)['inputs']
    return x if torch.is_tensor(x) else torch.stack(x)
