"""Checks of data and weights before a run.

A check raises an error for whatever would stop a run later, or silently ruin it. The
message names the file and its wrong entry, and says what to do. Whatever MMDetection
leaves out, or only looks wrong, is a warning.
"""

from .annotations import CheckedCOCO, checked_annotations
from .classes import (
    check_classes,
    check_num_classes,
    check_same_classes,
    check_trained_classes,
)
from .data_paths import check_data
from .datasets import check_dataset
from .ground_truth import check_truth
from .images import check_images
from .objects import check_objects
from .pretrained import check_pretrained
from .suspicious_data import describe_suspicious_data
from .weights import check_weights

__all__ = [
    'CheckedCOCO',
    'check_classes',
    'check_data',
    'check_dataset',
    'check_images',
    'check_num_classes',
    'check_objects',
    'check_pretrained',
    'check_same_classes',
    'check_trained_classes',
    'check_truth',
    'check_weights',
    'checked_annotations',
    'describe_suspicious_data',
]
