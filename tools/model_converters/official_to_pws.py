"""Make the pretrained weights of a PWSResNet from those of the paper's authors.

IN is a checkpoint of their detection or their ImageNet code, of the whole network or
of its backbone. OUT can be named in a config as
init_cfg=dict(type='Pretrained', checkpoint=OUT).
"""

import argparse
from pathlib import Path

from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.checkpoint.write import write_checkpoint
from pws_mmdet.convert.authors_checkpoint import OfficialBackbone, from_official
from pws_mmdet.utils.files import check_new_path


def convert(checkpoint: str | Path, out: str | Path) -> OfficialBackbone:
    """Write the weights of the backbone, and nothing else.

    Args:
        checkpoint: Of the authors' code.
        out: The new file, *.pth.

    Returns:
        What was written and what was not.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it does not fit (see :func:`from_official`), or ``out`` does not
            end in .pth.
        FileExistsError: If ``out`` exists.
        OSError: If it cannot be written.
    """
    check_new_path(out, '.pth')
    backbone = from_official(read_checkpoint(checkpoint).weights, checkpoint)
    write_checkpoint(dict(state_dict=backbone.state_dict), out)
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', metavar='IN', help='such as epoch_100.pth')
    parser.add_argument('out', metavar='OUT', help='such as checkpoints/resnet50.pth')
    args = parser.parse_args()
    try:
        backbone = convert(args.checkpoint, args.out)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'{backbone.report()}\nwritten: {args.out}')


if __name__ == '__main__':
    main()
