from .composition import Composition, describe_model
from .gamma import gamma_of_record, paper_gamma, suggest_gamma
from .record import Layer, VarianceRecord, read_record
from .statistics import STATISTICS, applied_filters

__all__ = [
    'Composition',
    'Layer',
    'STATISTICS',
    'VarianceRecord',
    'applied_filters',
    'describe_model',
    'gamma_of_record',
    'paper_gamma',
    'read_record',
    'suggest_gamma',
]
