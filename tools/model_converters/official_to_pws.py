"""Make the pretrained weights of a PWSResNet from those of the paper's authors.

IN is a checkpoint of their detection or their ImageNet code, of the whole network or of
its backbone. Name OUT in a config: init_cfg=dict(type='Pretrained', checkpoint=OUT).
"""

import argparse

from pws_mmdet.convert import convert_authors_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', metavar='IN', help='such as epoch_100.pth')
    parser.add_argument('out', metavar='OUT', help='such as checkpoints/resnet50.pth')
    args = parser.parse_args()
    try:
        backbone = convert_authors_checkpoint(args.checkpoint, args.out)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'{backbone.report()}\nwritten: {args.out}')


if __name__ == '__main__':
    main()
