from .record import Layer, VarianceRecord, read_record
from .statistics import STATISTICS, applied_filters

__all__ = [
    'Layer',
    'STATISTICS',
    'VarianceRecord',
    'applied_filters',
    'read_record',
]
