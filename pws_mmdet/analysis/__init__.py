from .gamma import gamma_of_record, paper_gamma, suggest_gamma
from .model_summary import Composition, summarize_config, summarize_model
from .scalars import Scalars, read_scalars
from .variance import STATISTICS, applied_filters
from .variance_record import Layer, VarianceRecord, read_record

__all__ = [
    'Composition',
    'Layer',
    'STATISTICS',
    'Scalars',
    'VarianceRecord',
    'applied_filters',
    'gamma_of_record',
    'paper_gamma',
    'read_record',
    'read_scalars',
    'suggest_gamma',
    'summarize_config',
    'summarize_model',
]
