from .detector import OUTPUTS, DeployedDetector
from .export import export_onnx
from .onnx_file import write_onnx
from .operators import TRANSLATIONS

__all__ = [
    'OUTPUTS',
    'TRANSLATIONS',
    'DeployedDetector',
    'export_onnx',
    'write_onnx',
]
