"""Make the pretrained weights of a detector's backbone from a classifier.

Name OUT in a config: init_cfg=dict(type='Pretrained', checkpoint=OUT). OUT is a link to
the file itself, whose name ends in the first digits of its SHA-256.
"""

import argparse

from pws_mmdet.convert import publish_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of the classifier, such as epoch_100.pth')
    parser.add_argument('out', help='such as checkpoints/resnet50_pws_in1k.pth')
    args = parser.parse_args()
    try:
        path = publish_backbone(args.checkpoint, args.out)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'written: {path}\nlink:    {args.out}')


if __name__ == '__main__':
    main()
