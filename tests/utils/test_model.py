"""The network is found inside its wrappers."""

from mmdet.models import DetTTAModel
from mmengine.model import MMDistributedDataParallel
from torch import nn

from pws_mmdet.utils.model import unwrap_model


def wrap(cls, module):
    wrapper = cls.__new__(cls)  # its constructor needs a process group or a config
    nn.Module.__init__(wrapper)
    wrapper.module = module
    return wrapper


def test_unwrap_model_removes_all_wrappers():
    network = nn.Linear(1, 1)
    assert unwrap_model(network) is network
    assert unwrap_model(nn.DataParallel(network)) is network
    for outer, inner in (
        (DetTTAModel, MMDistributedDataParallel),
        (MMDistributedDataParallel, DetTTAModel),
    ):
        assert unwrap_model(wrap(outer, wrap(inner, network))) is network


def test_unwrap_model_keeps_tta_where_it_is_told_to():
    tta = wrap(DetTTAModel, nn.Linear(1, 1))
    assert unwrap_model(wrap(MMDistributedDataParallel, tta), keep_tta=True) is tta
