from .detector import OUTPUTS, DeployedDetector
from .operators import TRANSLATIONS

__all__ = ['OUTPUTS', 'TRANSLATIONS', 'DeployedDetector']
