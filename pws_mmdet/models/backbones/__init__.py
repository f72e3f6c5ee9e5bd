from .cifar import ConvPoolCNN, PWSCifarResNet
from .pws_resnet import PWSResNet
from .pws_vgg import PWSSSDVGG, PWSVGG

__all__ = ['ConvPoolCNN', 'PWSCifarResNet', 'PWSResNet', 'PWSSSDVGG', 'PWSVGG']
