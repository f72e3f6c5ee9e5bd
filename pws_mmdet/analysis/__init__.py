from .gamma import gamma_of_record, paper_gamma, suggest_gamma
from .model_summary import Composition, summarize_model
from .variance import STATISTICS, applied_filters
from .variance_record import Layer, VarianceRecord, read_record

__all__ = [
    'Composition',
    'Layer',
    'STATISTICS',
    'VarianceRecord',
    'applied_filters',
    'summarize_model',
    'gamma_of_record',
    'paper_gamma',
    'read_record',
    'suggest_gamma',
]
