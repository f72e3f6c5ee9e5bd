"""Write a small data set of handwritten digits in the layout of COCO 2017.

The digits are the 1797 8x8 images of scikit-learn, so nothing is downloaded. Each image
shows a few of them in several sizes and colours on a textured background. That is
enough to train and compare detectors and instance segmenters within minutes.
"""

import argparse

from digits.coco import SPLITS, check_arguments, convert


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='folder to write the data set into')
    for option, default, text in [
        ('--num-train', 1440, 'number of train images'),
        ('--num-val', 100, 'number of val images'),
        ('--size', 192, 'side of the square images in pixels'),
        ('--max-digits', 4, 'most digits in an image'),
        ('--seed', 0, 'seed of all randomness'),
    ]:
        parser.add_argument(option, type=int, default=default, help=text)
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace the data set in a folder that is not empty; its other files are '
        'kept',
    )
    args = parser.parse_args()
    try:
        check_arguments(**vars(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    counts = convert(**vars(args))
    for split, number in zip(SPLITS, (args.num_train, args.num_val), strict=True):
        print(f'{split}: {number} images, {counts[split]} objects')
    print(f'written to {args.out_dir}')


if __name__ == '__main__':
    main()
