from .cifar import ConvPoolCNN, PWSCifarResNet
from .nf_resnet import NFCifarResNet
from .pws_resnet import PWSResNet
from .pws_vgg import PWSSSDVGG, PWSVGG

__all__ = [
    'ConvPoolCNN',
    'NFCifarResNet',
    'PWSCifarResNet',
    'PWSResNet',
    'PWSSSDVGG',
    'PWSVGG',
]
