from .backbones import PWSResNet, PWSVGG
from .dense_heads import PWSSSDHead

__all__ = ['PWSResNet', 'PWSSSDHead', 'PWSVGG']
