from .backbones import PWSVGG, ConvPoolCNN, PWSCifarResNet, PWSResNet
from .dense_heads import PWSSSDHead

__all__ = ['ConvPoolCNN', 'PWSCifarResNet', 'PWSResNet', 'PWSSSDHead', 'PWSVGG']
