from .backbones import (
    PWSVGG,
    ConvPoolCNN,
    NFCifarResNet,
    PWSCifarResNet,
    PWSResNet,
)
from .dense_heads import PWSSSDHead

__all__ = [
    'ConvPoolCNN',
    'NFCifarResNet',
    'PWSCifarResNet',
    'PWSResNet',
    'PWSSSDHead',
    'PWSVGG',
]
