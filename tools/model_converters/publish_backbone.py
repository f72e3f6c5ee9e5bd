"""Make the pretrained weights of a detector's backbone from a classifier.

OUT can be named in a config as init_cfg=dict(type='Pretrained', checkpoint=OUT). It
is a link to the file itself, whose name ends in a part of its SHA-256.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from pws_mmdet.compat import load_local_checkpoint
from pws_mmdet.convert.checkpoint import (
    check_finite,
    publish_checkpoint,
    weights_of,
)

PREFIX = 'backbone.'
# the norm layer that a PWSResNet has as a classifier only
DROPPED = PREFIX + 'out_norm.'


def backbone_of(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a classifier's backbone, by their names in it."""
    return {
        key.removeprefix(PREFIX): value
        for key, value in weights.items()
        if key.startswith(PREFIX) and not key.startswith(DROPPED)
    }


def publish(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the weights of a classifier's backbone, and nothing else.

    Where the training had an EMAHook, MMEngine's ``state_dict`` holds the averaged
    weights: they are the ones that are written.

    Args:
        checkpoint: Checkpoint of mmpretrain, or of any model with a ``backbone``.
        out: STEM.pth: the file is written as STEM-HASH.pth beside it, with the first
            8 hexadecimal digits of its SHA-256, and ``out`` becomes a link to it. The
            same weights give the same file.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it has no weights of a backbone, or some that are not finite,
            or ``out`` does not end in .pth.
        FileExistsError: If ``out`` is something else than a link.
    """
    content = load_local_checkpoint(str(checkpoint), map_location='cpu')
    try:
        weights = weights_of(content)
    except ValueError:
        weights = {}
    backbone = backbone_of(weights)
    if not backbone:
        found = ', '.join(sorted({f'{key.split(".")[0]}.*' for key in weights}))
        raise ValueError(
            f'{checkpoint} has no weights named {PREFIX}*, but {found or "none at all"}'
        )
    check_finite(backbone, checkpoint)
    return publish_checkpoint(dict(state_dict=backbone), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of the classifier, such as epoch_100.pth')
    parser.add_argument('out', help='such as checkpoints/resnet50_pws_in1k.pth')
    args = parser.parse_args()
    try:
        path = publish(args.checkpoint, args.out)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'written: {path}\nlink:    {args.out}')


if __name__ == '__main__':
    main()
