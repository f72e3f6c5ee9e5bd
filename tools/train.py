"""Train a detector: MMDetection's own program, with all its flags."""

from pws_mmdet.engine.programs import run_mmdet_program

if __name__ == '__main__':
    run_mmdet_program('train.py')
