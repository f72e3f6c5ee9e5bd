"""Load the weights of a network with BN into the same network with PWS."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from mmcv.cnn import ConvAWS2d
from torch import Tensor, nn

from ..checkpoint.weights import check_finite
from ..layers import PWSConv2d
from ..layers.reparam_conv import conv_like
from ..layers.standardize import standardize_as_mmcv
from ..utils.isolation import isolated
from ..utils.names import first_names
from .batch_norm import is_plain_conv, pair_by_name
from .convert import check_takes_filters, convert_folded
from .fold import fold_bn
from .fuse import convs_read_directly
from .layer import ConversionReport, Layer
from .others import other_convolutions, reason_to_stay
from .subclasses import only_convolves

BN_STATE = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
BN_EPS = 1e-5  # torch's default. MobileNetV3, EfficientNet and YOLOX have 1e-3.


def is_pws(weights: Mapping[str, Tensor]) -> bool:
    """Tell whether weights are those of a network with PWS."""
    return any(key.endswith('.alpha') for key in weights)


def load_bn_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bn_eps: float = BN_EPS,
    conv_ws: bool = False,
    seed: int = 0,
) -> tuple[ConversionReport, list[str]]:
    """Convert the weights of a network with BN, and load them into a network with PWS.

    All random numbers come from ``seed``, and the global random state stays as it is.

    Args:
        model: The network, whose PWS convolutions have an alpha per channel and
            ``keep_mean``. Layers that are no convolution take their weights as they
            are. A plain convolution with a bias takes in the BN layer that the network
            lacks.
        weights: Weights of the network with BN, or without any norm. Convolutions have
            the same names, BN layers the names that torchvision, MMDetection and
            mmpretrain give them.
        bn_eps: eps of the BN layers. A checkpoint does not hold it.
        conv_ws: Where ``model`` has PWS convolutions, the weights are those of MMCV's
            ConvWS, and are standardized first. A checkpoint does not tell.
        seed: As of ``convert_to_pws``.

    Returns:
        A record of each convolution, and of those that are no PWS convolutions in the
        network; and the keys of weights that were not used.

    Raises:
        ValueError: If the weights do not fit the network, the network cannot be
            converted to, or the weights have norm layers other than BN that the network
            lacks. Then the network keeps its weights.
    """
    with isolated(seed):
        made, report, unused = _convert(model, weights, bn_eps, conv_ws, seed)
    # Load, instead of copying parameters: PWSAlphaInitHook leaves loaded layers alone.
    model.load_state_dict(made)
    return report, unused


def _convert(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bn_eps: float,
    conv_ws: bool,
    seed: int,
) -> tuple[dict[str, Tensor], ConversionReport, list[str]]:
    """Do the work of ``load_bn_weights`` on a copy of the network.

    Returns:
        The state dict to load; and what ``load_bn_weights`` returns.
    """
    # While MMEngine initializes a model, each module refers to all parameters of the
    # model here. A copy of one layer would copy them all.
    info = getattr(model, '_params_init_info', None)
    model = copy.deepcopy(model, {id(info): {}} if info is not None else None)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PWSConv2d):
            names.setdefault(module, []).append(name)
    _check_network(model, {known_as[0]: conv for conv, known_as in names.items()})
    _check_weights(model, weights, bn_eps)
    folded = _fold(model, weights, names, bn_eps, conv_ws)
    if folded.problems:
        rest = folded.unused and [f'no use for {first_names(folded.unused)}']
        raise ValueError(
            'the weights do not fit the network: '
            + '; '.join([*folded.problems, *rest])
        )
    _check_unused(model, folded.unused, weights, names)
    report = convert_folded(
        folded.network,
        folded.layers,
        lambda name, conv: copy.deepcopy(model.get_submodule(name)),
        seed,
    )
    report += other_convolutions(model, {layer.name for layer in folded.layers})
    return folded.network.state_dict(), report, folded.unused


@dataclass
class _Folded:
    """The plain network that the weights make, with BN in its convolutions.

    Attributes:
        network: A copy of the network with plain convolutions in place of PWS ones.
        layers: Records of its convolutions.
        unused: Keys of weights that it does not use.
        problems: What does not fit, as parts of a message.
    """

    network: nn.Module
    layers: list[Layer]
    unused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _check_network(model: nn.Module, convs: Mapping[str, PWSConv2d]) -> None:
    """Raise a ValueError if a network cannot take converted weights."""
    if any(getattr(module, 'pre_activation', False) for module in model.modules()):
        raise ValueError(
            "the network has the blocks of the paper's authors, which compute "
            'something else than those of any network with BN: set '
            'pre_activation=False'
        )
    if not convs:
        raise ValueError('the network has no PWS convolutions')
    read_directly = convs_read_directly(model)
    for name, conv in convs.items():
        if conv in read_directly:
            raise ValueError(
                f'{name}: the network reads its weight and does not call it, so that '
                'it cannot be converted. Let that part have plain convolutions'
            )
        try:
            check_takes_filters(conv)
        except ValueError as e:
            raise ValueError(f'{name}: {e}') from None


def _check_weights(
    model: nn.Module, weights: Mapping[str, Tensor], bn_eps: float
) -> None:
    if is_pws(weights):
        raise ValueError('the weights are those of a network with PWS already')
    check_finite(weights, 'it', model)
    if not (math.isfinite(bn_eps) and bn_eps >= 0):
        raise ValueError(f'the eps of BN must be finite and not negative, got {bn_eps}')


# --- fold --------------------------------------------------------------------------


def _fold(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    names: Mapping[PWSConv2d, Sequence[str]],
    bn_eps: float,
    conv_ws: bool,
) -> _Folded:
    """Build a plain copy of a network, and load weights whose BN is folded.

    Args:
        model: The network.
        weights: Of the network with BN.
        names: All names of each PWS convolution.
        bn_eps: eps of BN.
        conv_ws: The weights are those of MMCV's ConvWS.
    """
    convs = {known_as[0]: conv for conv, known_as in names.items()}
    weights = _computed_filters(weights, convs, conv_ws)
    bns = pair_by_name(weights)
    weights, layers = _fold_into_plain(model, weights, bns, bn_eps)
    folded = _Folded(copy.deepcopy(model), layers)
    used = set()
    for name, conv in convs.items():
        weight, bias = weights.get(f'{name}.weight'), weights.get(f'{name}.bias')
        if weight is None or weight.shape != conv.weight.shape:
            continue
        layer = Layer(name)
        bn = bns.get(name)
        used |= {
            f'{alias}.{key}' for alias in names[conv] for key in ('weight', 'bias')
        }
        if bn:
            state = {
                k: weights[f'{bn}.{k}'] for k in BN_STATE if f'{bn}.{k}' in weights
            }
            weight, bias = fold_bn(weight, bias, state, bn_eps)
            used |= {f'{bn}.{key}' for key in BN_STATE}
        layers.append(layer)
        new = conv_like(conv)
        new.weight.copy_(weight)
        new.bias.copy_(torch.zeros_like(new.bias) if bias is None else bias)
        for alias in names[conv]:
            parent, _, key = alias.rpartition('.')
            folded.network.get_submodule(parent)._modules[key] = new

    all_names = {name for known_as in names.values() for name in known_as}
    others = {
        key: value
        for key, value in model.state_dict().items()
        if key.rpartition('.')[0] not in all_names
    }
    places = {**{f'{n}.weight': conv.weight for n, conv in convs.items()}, **others}
    folded.problems = _misfits(weights, places)
    folded.unused = sorted(set(weights) - used - set(others))
    if not folded.problems:
        others = {key: weights[key] for key in others}
        folded.network.load_state_dict(others, strict=False)
    folded.network.eval()
    return folded


def _computed_filters(
    weights: Mapping[str, Tensor], convs: Iterable[str], conv_ws: bool
) -> dict[str, Tensor]:
    """Replace the weights of MMCV's ConvAWS and ConvWS by the filters they compute."""
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


def _fold_into_plain(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bns: Mapping[str, str],
    bn_eps: float,
) -> tuple[dict[str, Tensor], list[Layer]]:
    """Fold BN layers that a network lacks into its plain convolutions.

    Subclasses that only pad their inputs count as plain.

    Returns:
        The weights without these BN layers; records of the convolutions.
    """
    weights = dict(weights)
    layers = []
    places = model.state_dict()
    for name, conv in model.named_modules():
        bn = bns.get(name)
        if bn is None or f'{bn}.running_mean' in places:
            continue
        plain = is_plain_conv(conv) or only_convolves(conv)
        if not plain or conv.bias is None:
            continue
        state = {
            k: weights.pop(f'{bn}.{k}') for k in BN_STATE if f'{bn}.{k}' in weights
        }
        weight, bias = fold_bn(
            weights[f'{name}.weight'], weights.get(f'{name}.bias'), state, bn_eps
        )
        weights[f'{name}.weight'], weights[f'{name}.bias'] = weight, bias
        layers.append(Layer(name, reason_to_stay(conv)))
    return weights, layers


# --- what does not fit -------------------------------------------------------------


def _misfits(weights: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in places if key not in weights]
    wrong = [
        f'{key} is {tuple(weights[key].shape)}, not {tuple(place.shape)}'
        for key, place in places.items()
        if key in weights and weights[key].shape != place.shape
    ]
    problems = [f'they lack {first_names(missing)}'] if missing else []
    return problems + ([first_names(wrong)] if wrong else [])


def _other_norms(keys: Iterable[str], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of norm layers without statistics (GN, LN, IN, GRN, L2Norm) among keys."""
    vectors = [key.rpartition('.') for key in keys if weights[key].squeeze().dim() == 1]
    names = {
        name: leaf
        for name, _, leaf in vectors
        if leaf in ('weight', 'gamma') and f'{name}.running_mean' not in weights
    }
    return list(names)


def _check_unused(
    model: nn.Module,
    unused: Sequence[str],
    weights: Mapping[str, Tensor],
    names: Mapping[PWSConv2d, Sequence[str]],
) -> None:
    """Raise a ValueError if unused weights belong to norm layers of the network.

    Norm layers of a part that the network does not have, such as a classifier, are
    ignored.
    """
    modules = {name for name, _ in model.named_modules()}
    unused = [k for k in unused if k.rpartition('.')[0].rpartition('.')[0] in modules]
    norms = _other_norms(unused, weights)
    if norms:
        raise ValueError(
            f'the network lacks their norm layers {first_names(norms)}, which are no '
            'BN. BN has running statistics, so that it can be folded into a '
            'convolution; GN, LN, IN and L2Norm cannot. Take weights of the same '
            'network with BN, or train it from scratch'
        )
    left = [key.removesuffix('.running_mean') for key in unused if '.running_m' in key]
    if not left:
        return
    several = [known_as[0] for known_as in names.values() if len(known_as) > 1]
    raise ValueError(
        'it is not known which convolution these BN layers follow: '
        f'{first_names(left)}. '
        + (
            f'The network shares some, such as {several[0]}: each BN layer needs a '
            'convolution of its own (share_conv=False in the head of RTMDet)'
            if several
            else 'convert_to_pws converts the network itself'
        )
    )
