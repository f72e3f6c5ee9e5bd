"""Export a detector to ONNX: raw images in, detections out.

PWS convolutions become plain ones whose weights are constants. The graph normalizes
and pads the images, and does all of MMDetection's post-processing.

  input   images  float32 (N, 3, H, W), 0 to 255, resized as in the config's test
                  pipeline, channels as the data_preprocessor expects them (as a
                  rule BGR). All images of a batch have one size. Boxes are clipped
                  to it, even if you padded the images to get it.
  output  boxes   float32 (N, D, 4), x1, y1, x2, y2 in pixels of the input
          scores  float32 (N, D), the best first
          labels  int64 (N, D)
          masks   float32 (N, D, h, w), of Mask R-CNN: probabilities, on a grid that
                  fills the box

D is the max_per_img of the config. An image with fewer detections is filled up with
label -1, score 0 and box 0. N, H and W are free, unless --shape fixes H and W.

Opset 18, IR version 10: ONNX Runtime 1.18 or later.
"""

import argparse
import logging

from pws_mmdet.utils.config import ConfigOptions


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='of the detector; its code is run')
    add('checkpoint', help='such as epoch_12.pth')
    add('out', help='such as detector.onnx')
    shape = 'fix height and width, for runtimes that need it'
    add('--shape', nargs=2, type=int, metavar=('H', 'W'), help=shape)
    verify = 'compare the detections with those of MMDetection before OUT is written'
    add('--verify', action=argparse.BooleanOptionalAction, default=True, help=verify)
    add('--image', help='verify with this one (default: random pixels)')
    options = 'changes to the config, KEY=VALUE ..., such as those of the training'
    add('--cfg-options', nargs='+', action=ConfigOptions, help=options)
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        from pws_mmdet.deploy import export_onnx  # an ImportError with an old torch

        result = export_onnx(
            *(args.config, args.checkpoint, args.out),
            *(args.shape, args.image, args.verify, args.cfg_options),
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    if result is not None:
        found, low = result.pop('detections'), result.pop('least_score', None)
        print(f'ONNX Runtime and MMDetection agree in {found} detections')
        if low is not None:
            print(
                f'  with a score above {low:.2g}: none is above the score_thr of the '
                'config. --image checks with an image of yours.'
            )
        for name, difference in result.items():
            print(f'  {name:8}largest difference {difference:.2g}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
