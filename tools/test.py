"""Test a detector: MMDetection's own program, with all its flags."""

from pws_mmdet.compat import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('test.py')
