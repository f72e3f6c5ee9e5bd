"""Write scikit-learn's handwritten digits as a folder of images for each class.

The layout is that of mmpretrain's CustomDataset, train/0 to test/9. scikit-learn comes
with the 1797 digits, so nothing is downloaded.
"""

import argparse

from digits.imagefolder import check_arguments, convert


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='folder to write the data set into')
    parser.add_argument(
        '--size', type=int, default=16, help='side of the square images in pixels'
    )
    parser.add_argument(
        '--textured',
        action='store_true',
        help='coloured digits on coloured textures instead of grey on black',
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace train and test in a folder that is not empty; its other files '
        'are kept',
    )
    args = parser.parse_args()
    try:
        check_arguments(args.out_dir, args.size, args.force)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    counts = convert(**vars(args))
    for split, count in counts.items():
        print(f'{split}: {count} images')
    print(f'written to {args.out_dir}')


if __name__ == '__main__':
    main()
