"""Train a detector with MMDetection's own program. All its flags work."""

from pws_mmdet.engine.programs import run_mmdet_program

if __name__ == '__main__':
    run_mmdet_program('train.py')
