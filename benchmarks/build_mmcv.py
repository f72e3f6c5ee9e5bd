"""Compile MMCV with only the CUDA operators that the detectors of gpu.py call.

    python benchmarks/build_mmcv.py mmcv-2.1.0.tar.gz FOLDER

writes a wheel to FOLDER, for the Python and the torch that run this program. It has all
operators for the CPU. The operators for CUDA are suppression, RoIAlign, RoIPool, focal
loss and deformable convolutions, compiled for TORCH_CUDA_ARCH_LIST or the GPU at hand.
That takes a tenth of the time of all operators. ``--cpu`` leaves CUDA out.
"""

import argparse
import os
from pathlib import Path

from mmcv_build import build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('archive', type=Path, help='source of MMCV')
    parser.add_argument('folder', type=Path, help='folder for the wheel')
    parser.add_argument('--cpu', action='store_true', help='no CUDA operators')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='compilers')
    args = parser.parse_args()
    build(args.archive, args.folder, not args.cpu, args.jobs)


if __name__ == '__main__':
    main()
