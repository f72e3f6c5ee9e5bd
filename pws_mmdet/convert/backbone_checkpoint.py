"""Take the pretrained weights of a backbone out of the checkpoint of a classifier."""

from pathlib import Path

from ..checkpoint import check_finite, publish_checkpoint, read_checkpoint

PREFIX = 'backbone.'
DROPPED = 'out_norm.'  # the norm layer that a PWSResNet has as a classifier only


def publish_backbone(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the weights of a classifier's backbone, and nothing else.

    If the training had an EMAHook, the ``state_dict`` of a checkpoint of MMEngine holds
    the averaged weights, and these are written. The same weights give the same file.

    Args:
        checkpoint: Checkpoint of mmpretrain, or of any model with a ``backbone``.
        out: STEM.pth. The file is written as STEM-HASH.pth beside it, where HASH is the
            first 8 hexadecimal digits of its SHA-256, and ``out`` becomes a link to it.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it has no weights of a backbone, or some that are not finite,
            or ``out`` does not end in .pth.
        FileExistsError: If ``out`` exists and is not a link.
    """
    weights = read_checkpoint(checkpoint, PREFIX).weights
    backbone = {k: v for k, v in weights.items() if not k.startswith(DROPPED)}
    check_finite(backbone, checkpoint)
    return publish_checkpoint(dict(state_dict=backbone), out)
