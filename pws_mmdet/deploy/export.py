"""Export a detector, its normalization and its post-processing to ONNX."""

import os
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ..checkpoint.read import read_checkpoint
from ..checkpoint.weights import load_strictly
from ..convert.fuse import fuse_pws
from ..utils.config import build_model, read_config
from ..utils.files import check_new_path
from ..utils.progress import next_stage, stage_bar
from .check import detecting_score, images_to_verify, verify
from .detector import OUTPUTS, DeployedDetector
from .onnx_file import check_extra, write_onnx

LARGEST_SIDE = 2**15  # pixels


def export_onnx(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    shape: tuple[int, int] | None = None,
    image: str | Path | None = None,
    check: bool = True,
    cfg_options: dict | None = None,
) -> dict[str, float] | None:
    """Export the detector of a config and a checkpoint to ONNX.

    PWS convolutions become plain ones whose weights are constants. The graph takes and
    returns what ``DeployedDetector`` does. Opset 18, IR version 10: it needs ONNX
    Runtime 1.18 or later.

    Args:
        config: A config file; its code is run.
        checkpoint: The weights.
        out: The file to write. It must end in .onnx and must not exist.
        shape: Fixes the height and width of the images. None leaves them free.
        image: An image for the check. None takes random pixels.
        check: Compare the detections with MMDetection's before ``out`` is written.
        cfg_options: Changes to the config, as of MMDetection's programs.

    Returns:
        The number of compared detections and the largest difference of each output, or
        None without a check. If no detection is above the score threshold of the
        config, the check uses a lower threshold, the entry ``least_score``.

    Raises:
        ImportError: If the packages of the extra 'onnx' are missing.
        OSError: If a file cannot be read, or ``out`` exists.
        RuntimeError: If the checkpoint is damaged or holds more than data.
        ValueError: If the arguments do not fit, the detector is not supported, or the
            result does not detect the same.
    """
    check_extra()
    out = check_new_path(out, '.onnx')
    if shape is not None and not 1 <= min(shape) <= max(shape) <= LARGEST_SIDE:
        raise ValueError(
            f'--shape must be from 1 to {LARGEST_SIDE}, got {shape[0]} {shape[1]}'
        )
    fixed_size = shape is not None
    batches = None
    if image is not None:  # read it before the long work
        batches = images_to_verify(image, shape or (0, 0), fixed_size)
    cfg = read_config(config, cfg_options)
    check_test_cfg(config, cfg)
    network = DeployedDetector(build_model(config, cfg))
    load_weights(network.model, checkpoint)
    fuse_pws(network.model, inplace=True)
    size = shape or trace_size(network.model)
    outputs = list(OUTPUTS[: 4 if network.with_masks else 3])

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.{os.getpid()}')
    result = None
    try:
        with stage_bar('trace and write the network', 2 if check else 1) as bar:
            write_onnx(network, part, outputs, size, fixed_size, network.least_score)
            if check:
                next_stage(bar, 'compare it with MMDetection')
                batches = batches or images_to_verify(None, size, fixed_size)
                result = verify_twice(part, network, batches)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return result


def verify_twice(path: Path, network: DeployedDetector, batches: list) -> dict:
    """Verify a file at a threshold with detections, then at that of the config."""
    least = network.least_score
    low = detecting_score(network, batches)
    result = verify(path, network, batches, low)
    if not result['detections']:
        raise ValueError(
            'No detection of ONNX Runtime and MMDetection could be compared: '
            'name an image with --image. Nothing was written.'
        )
    if low != least:
        verify(path, network, batches, least)
        result['least_score'] = low
    return result


def check_test_cfg(config: str | Path, cfg: Config) -> None:
    """Raise a ValueError unless each ``test_cfg`` of the model is a dict."""
    test_cfg = cfg.model.get('test_cfg')
    parts = [test_cfg]
    if isinstance(test_cfg, dict):  # two-stage detectors have a part for each stage
        parts += [test_cfg[key] for key in ('rpn', 'rcnn') if key in test_cfg]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f'{config}: model.test_cfg must be a dict, got {test_cfg!r}')


def trace_size(model: nn.Module) -> tuple[int, int]:
    """A height and a width that differ and make the smallest feature map 3 x 4."""
    head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
    stride = max(max(strides) for strides in head.prior_generator.strides)
    return 3 * stride, 4 * stride


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint that has each weight of the model, and no other.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it does not fit the model, or a weight is not finite.
    """
    weights = read_checkpoint(checkpoint).weights
    try:
        load_strictly(model, weights)
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None
