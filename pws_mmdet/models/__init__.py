from .backbones import PWSVGG, PWSResNet
from .dense_heads import PWSSSDHead

__all__ = ['PWSResNet', 'PWSSSDHead', 'PWSVGG']
