"""Weights of networks with BN for networks with PWS, by the names of their layers."""

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvAWS2d
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..checkpoint.read import read_checkpoint
from ..checkpoint.weights import check_finite, load_strictly
from ..layers import PWSConv2d
from ..layers.reparam_conv import conv_like
from ..layers.standardize import standardize_as_mmcv
from ..utils.names import first_names
from .calibrate import ConvertedLayer, Layer, center_network
from .convert import UNALIGNED, check_takes_filters, fold_bn, set_filters
from .fuse import read_past

CALIBRATE = (
    'python tools/model_converters/bn_to_pws.py CONFIG CHECKPOINT OUT.pth '
    '--calibrate FOLDER'
)

BN_STATE = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
BN_EPS = 1e-5  # torch's; the networks of mobile devices and YOLOX have 1e-3


def is_pws(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of a network with PWS."""
    return any(key.endswith('.alpha') for key in weights)


def _bn_layers(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The BN layer that follows each convolution, as far as the keys tell.

    By the names that torchvision and OpenMMLab have for them, or else the BN layer
    that is written next to the convolution.
    """
    names = list(dict.fromkeys(key.rpartition('.')[0] for key in weights))
    pairs: dict[str, str] = {}

    def pair(conv: str, bn: str) -> None:
        mean = weights.get(f'{bn}.running_mean')
        kernel = weights.get(f'{conv}.weight')
        if mean is None or kernel is None or kernel.dim() != 4:
            return
        if len(mean) == len(kernel) and bn not in pairs.values():
            pairs.setdefault(conv, bn)

    for conv in names:
        parent, dot, name = conv.rpartition('.')
        if name.isdigit():  # in a Sequential, or in lists as of Res2Net
            pair(conv, f'{parent}{dot}{int(name) + 1}')
            if parent.endswith('convs'):
                pair(conv, f'{parent.removesuffix("convs")}bns.{name}')
        elif re.fullmatch(r'conv\d*', name):
            pair(conv, parent + dot + name.replace('conv', 'bn'))
    for conv, bn in pairwise(names):
        if conv.rpartition('.')[0] == bn.rpartition('.')[0]:
            pair(conv, bn)
    return pairs


def _bake(
    weights: Mapping[str, Tensor], convs: Iterable[str], conv_ws: bool
) -> dict[str, Tensor]:
    """Weights with the filters that MMCV's ConvAWS, and ConvWS, compute from theirs."""
    weights = dict(weights)
    for name in convs:
        key = f'{name}.weight'
        gain, shift = (weights.pop(f'{key}_{k}', None) for k in ('gamma', 'beta'))
        if gain is not None and shift is not None:
            weight = weights[key]
            aws = ConvAWS2d(weight.shape[1], len(weight), weight.shape[2:], bias=False)
            aws.weight_gamma, aws.weight_beta = gain, shift
            weights[key] = aws._get_weight(weight)
        elif conv_ws and key in weights:
            weights[key] = standardize_as_mmcv(weights[key])
    return weights


def _other_norms(keys: Iterable[str], weights: Mapping[str, Tensor]) -> list[str]:
    """Layers among keys that normalize (GN, LN, IN, GRN, L2Norm) without statistics."""
    vectors = [key.rpartition('.') for key in keys if weights[key].squeeze().dim() == 1]
    names = {
        name: leaf
        for name, _, leaf in vectors
        if leaf in ('weight', 'gamma') and f'{name}.running_mean' not in weights
    }
    return list(names)


def _fold_into_plain(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bns: Mapping[str, str],
    bn_eps: float,
) -> tuple[dict[str, Tensor], list[Layer]]:
    """Fold BN that a network lacks into its plain convolutions.

    Returns:
        The weights without that BN, and the convolutions.
    """
    weights = dict(weights)
    layers = []
    places = model.state_dict()
    for name, conv in model.named_modules():
        plain = type(conv) in (nn.Conv2d, MMCVConv2d)
        if not plain or conv.bias is None or f'{name}.weight' not in weights:
            continue
        bn = bns.get(name)
        if bn is None or f'{bn}.running_mean' in places:
            continue
        state = {key: weights.pop(f'{bn}.{key}', None) for key in BN_STATE}
        weight, bias, *moments = fold_bn(
            weights[f'{name}.weight'], weights.get(f'{name}.bias'), state, bn_eps
        )
        weights[f'{name}.weight'], weights[f'{name}.bias'] = weight, bias
        kept = 'a plain convolution in the network'
        layers.append(Layer(name, *moments, kept=kept, scales=True))
    return weights, layers


@torch.no_grad()
def load_bn_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Sequence[Any] | None = None,
    bn_eps: float = BN_EPS,
    conv_ws: bool = False,
    **options: Any,
) -> tuple[list[ConvertedLayer], list[str]]:
    """Give a network with PWS the weights of the same network with BN.

    Args:
        model: The network, whose PWS convolutions have an alpha per channel. It may
            have other layers, which take their weights as they are, or, plain
            convolutions with a bias, with the BN that it lacks in them.
        weights: Of the network with BN, or without any norm, by the same names; BN's
            as torchvision, MMDetection and mmpretrain name it.
        batches: Calibration images; None converts without data.
        bn_eps: The eps of its BN layers, which a checkpoint does not tell.
        conv_ws: Its convolutions with a PWS one in their place are MMCV's ConvWS, which
            a checkpoint does not tell either: they are standardized first.
        **options: As of :func:`convert_to_pws`: ``forward``, ``max_scale``,
            ``max_positions``, ``unaligned``, ``sweeps``, ``seed``, ``progress``.

    Returns:
        What became of each PWS convolution, and the keys that found no use.

    Raises:
        ValueError: If the weights do not fit the network, it is no network that they
            can be converted for, they have other norm layers than BN, which it lacks,
            or the images reach no layer. The network keeps its own weights then.
    """
    if is_pws(weights):
        raise ValueError('the weights are those of a network with PWS already')
    if any(getattr(module, 'pre_activation', False) for module in model.modules()):
        raise ValueError(
            "the network has the blocks of the paper's authors, which compute "
            'something else than those of any network with BN: set '
            'pre_activation=False'
        )
    check_finite(weights, 'it', model)
    names: dict[nn.Module, list[str]] = {}  # several of a layer that is shared
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PWSConv2d):
            names.setdefault(module, []).append(name)
    convs = {known_as[0]: conv for conv, known_as in names.items()}
    if not convs:
        raise ValueError('the network has no PWS convolutions')
    if not (math.isfinite(bn_eps) and bn_eps >= 0):
        raise ValueError(f'the eps of BN must be finite and not negative, got {bn_eps}')
    past = read_past(model)
    for name, conv in convs.items():
        if conv in past:
            raise ValueError(
                f'{name}: the network reads its weight and does not call it, so that '
                'it cannot be converted. Let that part have plain convolutions'
            )
        try:
            check_takes_filters(conv)
        except ValueError as e:
            raise ValueError(f'{name}: {e}') from None
    weights = _bake(weights, convs, conv_ws)
    bns = _bn_layers(weights)
    weights, layers = _fold_into_plain(model, weights, bns, bn_eps)

    plain = copy.deepcopy(model)
    used = set()
    for name, conv in convs.items():
        weight, bias = weights.get(f'{name}.weight'), weights.get(f'{name}.bias')
        if weight is None:
            continue
        if weight.shape != conv.weight.shape:
            continue
        layer = Layer(name)
        bn = bns.get(name)
        used |= {
            f'{alias}.{key}' for alias in names[conv] for key in ('weight', 'bias')
        }
        if bn:
            state = {key: weights.get(f'{bn}.{key}') for key in BN_STATE}
            weight, bias, layer.mean, layer.std = fold_bn(weight, bias, state, bn_eps)
            used |= {f'{bn}.{key}' for key in BN_STATE}
        layers.append(layer)
        new = conv_like(conv)
        new.weight.copy_(weight)
        new.bias.copy_(torch.zeros_like(new.bias) if bias is None else bias)
        for alias in names[conv]:
            parent, _, key = alias.rpartition('.')
            plain.get_submodule(parent)._modules[key] = new

    all_names = {name for known_as in names.values() for name in known_as}
    others = {
        key: value
        for key, value in model.state_dict().items()
        if key.rpartition('.')[0] not in all_names
    }
    missing = [f'{name}.weight' for name in convs if f'{name}.weight' not in weights]
    missing += [key for key in others if key not in weights]
    places = {**{f'{n}.weight': conv.weight for n, conv in convs.items()}, **others}
    wrong = [
        f'{key} is {tuple(weights[key].shape)}, not {tuple(place.shape)}'
        for key, place in places.items()
        if key in weights and weights[key].shape != place.shape
    ]
    if missing or wrong:
        rest = sorted(set(weights) - used - set(others))
        parts = [
            missing and f'they lack {first_names(missing)}',
            wrong and first_names(wrong),
            rest and f'no use for {first_names(rest)}',
        ]
        raise ValueError(
            'the weights do not fit the network: ' + '; '.join(filter(None, parts))
        )
    unused = sorted(set(weights) - used - set(others))
    _check_unused(model, unused, weights, names)
    others = {key: weights[key] for key in others}
    plain.load_state_dict(others, strict=False)
    plain.eval()
    options.setdefault('unaligned', UNALIGNED)
    filters, report = center_network(plain, layers, batches, **options)
    converted = copy.deepcopy(model)
    for name, (weight, bias) in filters.items():
        if name not in convs:
            others.update({f'{name}.weight': weight, f'{name}.bias': bias})
            continue
        set_filters(converted.get_submodule(name), weight, bias)
    # and not in place: PWSAlphaInitHook spares what it sees to be loaded
    model.load_state_dict({**converted.state_dict(), **others})
    return report, unused


def _check_unused(
    model: nn.Module,
    unused: Sequence[str],
    weights: Mapping[str, Tensor],
    names: Mapping[nn.Module, Sequence[str]],
) -> None:
    """Raise a ValueError if norm layers that the network lacks are left.

    Those of a part that it does not have, such as a classifier, do not count.
    """
    modules = {name for name, _ in model.named_modules()}
    unused = [k for k in unused if k.rpartition('.')[0].rpartition('.')[0] in modules]
    norms = _other_norms(unused, weights)
    if norms:
        raise ValueError(
            f'the network lacks their norm layers {first_names(norms)}, which are no '
            'BN. BN becomes part of a convolution, for it keeps statistics; GN, LN, '
            'IN and L2Norm cannot. Take weights of the same network with BN, or train '
            'it from scratch'
        )
    left = [key.removesuffix('.running_mean') for key in unused if '.running_m' in key]
    if not left:
        return
    several = [known_as[0] for known_as in names.values() if len(known_as) > 1]
    raise ValueError(
        'it is not known which convolution these BN layers become part of: '
        f'{first_names(left)}. '
        + (
            f'The network shares some, such as {several[0]}: each BN layer needs a '
            'convolution of its own (share_conv=False in the head of RTMDet)'
            if several
            else 'convert_to_pws converts the network itself'
        )
    )


@WEIGHT_INITIALIZERS.register_module('PWSPretrained', force=True)
class PWSPretrainedInit:
    """``init_cfg=dict(type='PWSPretrained', checkpoint=...)``: weights for a network.

    A checkpoint of a network with PWS is loaded. One of the same network with BN, as
    everybody has them, is converted, without data; that loses accuracy which
    training has to bring back, and tools/model_converters/bn_to_pws.py, which looks
    at a few images, loses far less.

    Args:
        checkpoint: A path, or what MMEngine takes: 'torchvision://resnet50', a URL.
        prefix: Take the weights below this name only, such as 'backbone.'.
        map_location: Where to load them.
        bn_eps: The eps of its BN layers, if it has them.
        conv_ws: The checkpoint is of a network with BN whose convolutions are MMCV's
            ConvWS, with a PWS one in their place.

    Raises:
        ValueError: If the checkpoint does not fit the network, or has GN or another
            norm that cannot be converted.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: str = 'cpu',
        bn_eps: float = BN_EPS,
        conv_ws: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        self.bn_eps = bn_eps
        self.conv_ws = conv_ws

    def __call__(self, module: nn.Module) -> None:
        weights = read_checkpoint(
            self.checkpoint, self.prefix, self.map_location
        ).weights
        try:
            if is_pws(weights):
                self._load(module, weights)
            else:
                self._convert(module, weights)
        except ValueError as e:
            raise ValueError(f'{self.checkpoint}: {e}') from None
        # MMEngine goes on to initialize the children unless they say so
        for child in module.children():
            child.is_init = True
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        self._tell_of_unused(load_strictly(module, weights, allow_unused=True))

    def _convert(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        report, unused = load_bn_weights(
            module, weights, bn_eps=self.bn_eps, conv_ws=self.conv_ws, progress=False
        )
        self._tell_of_unused(unused)
        has_bn = any(key.endswith('.running_mean') for key in weights)
        print_log(
            f'{self.checkpoint} is of a network with{"" if has_bn else "out"} BN: its '
            f'{len(report)} convolutions were converted without data, which changes '
            f'what they compute. With a few images it loses far less: {CALIBRATE}',
            logger='current',
            level=30,
        )

    def _tell_of_unused(self, keys: Sequence[str]) -> None:
        if keys:
            print_log(
                f'{self.checkpoint}: no use for {first_names(keys)}', logger='current'
            )

    def _get_init_info(self) -> str:
        return f'{type(self).__name__}: load from {self.checkpoint}'
