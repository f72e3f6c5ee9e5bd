"""Make the pretrained weights of a detector's backbone from a classifier.

OUT can be named in a config as init_cfg=dict(type='Pretrained', checkpoint=OUT). It
is a link to the file itself, whose name ends in a part of its SHA-256.
"""

import argparse
from pathlib import Path

from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.checkpoint.weights import check_finite
from pws_mmdet.checkpoint.write import publish_checkpoint

PREFIX = 'backbone.'
# the norm layer that a PWSResNet has as a classifier only
DROPPED = 'out_norm.'


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
    weights = read_checkpoint(checkpoint, PREFIX).weights
    backbone = {k: v for k, v in weights.items() if not k.startswith(DROPPED)}
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
