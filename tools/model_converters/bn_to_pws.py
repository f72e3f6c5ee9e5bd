"""Make weights for a network with PWS from those of the same network with BN.

CONFIG is the norm-free network's. CHECKPOINT holds the weights of a network that
differs from it by BN layers alone (weights with GN or LN cannot be converted): a
detector, or just its backbone (a classifier of torchvision or mmpretrain), and then
OUT is made for the backbone, for init_cfg=dict(type='Pretrained', checkpoint=OUT).
Every convolution is fitted to what the original one puts out on some images; nothing
is trained.
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import nn

import pws_mmdet  # noqa: F401
from pws_mmdet.checkpoint.read import read_checkpoint, weights_of
from pws_mmdet.checkpoint.write import write_checkpoint
from pws_mmdet.convert.convert import UNALIGNED
from pws_mmdet.convert.equalize import MAX_SCALE
from pws_mmdet.convert.images import dict_at, find_images, load_images
from pws_mmdet.convert.norm_free_config import bn_eps_of
from pws_mmdet.convert.pretrained import BN_EPS, load_bn_weights
from pws_mmdet.utils.config import (
    ConfigOptions,
    build_model,
    describe,
    drop_pretrained,
    read_config,
)
from pws_mmdet.utils.files import check_new_path


def convert(
    config: str,
    checkpoint: str,
    out: str,
    calibrate: str | None = None,
    num_images: int = 32,
    batch_size: int = 4,
    seed: int = 0,
    max_scale: float = MAX_SCALE,
    bn_eps: float | None = None,
    conv_ws: bool | None = None,
    unaligned: Sequence[str] = UNALIGNED,
    device: str = 'cpu',
    cfg_options: dict | None = None,
) -> None:
    """Convert a checkpoint, and print what became of each convolution.

    Raises:
        FileExistsError: If OUT exists.
        FileNotFoundError: If the config, checkpoint or images do not.
        OSError: If OUT cannot be written, or the checkpoint not be downloaded.
        RuntimeError: If the checkpoint is damaged or holds more than data.
        ValueError: If something does not fit.
    """
    out_path = check_new_path(out, '.pth')
    cfg = read_config(config, cfg_options)
    if not max_scale >= 1:
        raise ValueError(f'--max-scale must be 1 or more, got {max_scale}')
    if batch_size < 1:
        raise ValueError(f'--batch-size must be 1 or more, got {batch_size}')
    for pattern in unaligned:
        try:
            re.compile(pattern)
        except re.error as e:
            raise ValueError(f'--unaligned: {pattern!r} is no expression: {e}') from e
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as e:
        raise ValueError(f'--device {device}: {describe(e)}') from e
    test_set = dict_at(cfg, 'test_dataloader', 'dataset')
    if calibrate and 'pipeline' not in (test_set or {}):
        raise ValueError(
            f'{config} has no test_dataloader with a dataset, whose pipeline the '
            'calibration images pass'
        )
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    weights, dataset_meta = read_checkpoint(checkpoint)
    paths = find_images(calibrate, num_images, seed) if calibrate else []

    start = dict_at(cfg, 'model', 'backbone', 'init_cfg') or {}
    bn_eps = bn_eps_of(cfg.model) if bn_eps is None else bn_eps
    conv_ws = start.get('conv_ws', False) if conv_ws is None else conv_ws
    cfg.model = drop_pretrained(cfg.model)
    model = build_model(config, cfg).to(device)
    model.eval()
    try:
        target = choose_target(model, weights)
        if target is not model and any(k.startswith('backbone.') for k in weights):
            weights = weights_of(weights, 'backbone.')
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None
    batches = None
    options: dict[str, Any] = dict(
        seed=seed,
        max_scale=max_scale,
        bn_eps=bn_eps,
        conv_ws=conv_ws,
        unaligned=unaligned,
    )
    if paths:
        batches = load_images(cfg, paths, batch_size)
        if target is not model:
            preprocess = model.data_preprocessor
            batches = [preprocess(batch, False)['inputs'] for batch in batches]
            batches = [x if torch.is_tensor(x) else torch.stack(x) for x in batches]
    try:
        report, unused = load_bn_weights(target, weights, batches, **options)
    except ValueError as e:
        raise ValueError(f'{checkpoint}: {e}') from None
    made = dict(state_dict={k: v.cpu() for k, v in target.state_dict().items()})
    if target is model and dataset_meta is not None:
        made['meta'] = dict(dataset_meta=dataset_meta)
    write_checkpoint(made, out_path)
    print(*report, sep='\n')
    part = 'network' if target is model else 'backbone'
    errors = [layer.error for layer in report if layer.error is not None]
    print(
        f'written: {out}, {len(report)} convolutions of the {part}, '
        + (
            f'fitted to {len(paths)} images, median relative error '
            f'{statistics.median(errors):.3f}'
            if errors
            else 'WITHOUT images: --calibrate loses far less'
        )
    )
    if unused:
        print(f'not used: {", ".join(unused)}')


def choose_target(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The network, or its backbone if the weights are of no more than that."""
    backbone = getattr(model, 'backbone', None)
    others = {
        key
        for key in model.state_dict()
        if key.endswith('.weight') and not key.startswith('backbone.')
    }
    return model if backbone is None or others & set(weights) else backbone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help="of the norm-free network, mmdet's or mmpretrain's"
    )
    parser.add_argument('checkpoint', help='a path, torchvision://resnet50, or a URL')
    parser.add_argument(
        'out', help='the checkpoint to write, such as checkpoints/x.pth'
    )
    parser.add_argument(
        '--calibrate',
        metavar='FOLDER_OR_CONFIG',
        help='images: of a folder, or of the training set of a config. Without '
        'them, the network is converted from its statistics alone, and loses more',
    )
    parser.add_argument('--num-images', type=int, default=32, metavar='N')
    parser.add_argument('--batch-size', type=int, default=4, metavar='N')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of images')
    parser.add_argument(
        '--max-scale',
        type=float,
        default=MAX_SCALE,
        metavar='S',
        help='bound of the scales of channels: 10 loses less where no training '
        f'follows (default: {MAX_SCALE:g})',
    )
    parser.add_argument(
        '--bn-eps',
        type=float,
        metavar='EPS',
        help='of the BN layers, which CHECKPOINT does not tell; YOLOX, EfficientNet '
        'and MobileNetV3 have 1e-3 (default: that of CONFIG, if make_norm_free.py '
        f'wrote it, or else {BN_EPS:g})',
    )
    parser.add_argument(
        '--conv-ws',
        action='store_true',
        default=None,
        help="CHECKPOINT has BN behind MMCV's ConvWS, whose filters are standardized "
        "first (default: conv_ws of the backbone's init_cfg in CONFIG)",
    )
    parser.add_argument(
        '--unaligned',
        nargs='+',
        default=UNALIGNED,
        metavar='REGEX',
        help='layers whose inputs in the two networks do not correspond, as behind '
        'proposals: they aim at what their own filters make of the inputs that they '
        f'get (default: {" ".join(UNALIGNED)})',
    )
    parser.add_argument('--device', default='cpu', help='such as cuda')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V')
    args = parser.parse_args()
    try:
        convert(**vars(args))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
