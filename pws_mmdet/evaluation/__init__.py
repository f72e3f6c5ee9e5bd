from .f_measure import FMeasureMetric

__all__ = ['FMeasureMetric']
