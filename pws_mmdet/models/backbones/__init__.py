from .pws_resnet import PWSResNet
from .pws_vgg import PWSVGG

__all__ = ['PWSResNet', 'PWSVGG']
