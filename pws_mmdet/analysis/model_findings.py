"""Sentences about a model: is it norm-free, and how are its alphas trained?"""

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from ..layers import PWSConv2d
from ..utils.names import first_names
from .layer_kinds import NORM, PLAIN, kind_of

NO_DECAY = "optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')"


def describe_norms(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[str]:
    """Tell whether a model is norm-free, and which layers normalize."""
    norms = {name: layer for name, layer in layers.items() if kind_of(layer) == NORM}
    if not norms:
        yield 'Norm-free: no layer normalizes outputs'
        return
    yield (
        f'NOT norm-free: {len(norms)} of {len(layers)} layers normalize outputs: '
        + first_names([*norms])
    )
    in_eval_mode = [
        norm
        for norm in norms.values()
        if not norm.training and getattr(norm, 'running_mean', None) is not None
    ]
    if in_eval_mode and model.training:
        yield f'In eval mode, with running statistics: {len(in_eval_mode)} of these'


def describe_pws(
    layers: Mapping[str, nn.Module],
    alphas: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
    decayed: Collection[str] | None,
) -> Iterator[str]:
    """Describe gamma, alpha and means of the PWS convolutions, if there are any.

    Args:
        layers: The layers of a model, by name.
        alphas: The parameters alpha, by name.
        trained: Those that are trained.
        decayed: The names of those that weight decay changes, None if unknown.
    """
    pws = {name: m for name, m in layers.items() if isinstance(m, PWSConv2d)}
    if not pws:
        return
    yield f'gamma: {_describe_gammas(pws)}'
    frozen = [name for name in alphas if name not in trained]
    if alphas:
        text = 'all' if not frozen else f'{count_values(trained)} of them'
        end = ', none decayed' if decayed == [] else ''
        yield f'alpha: {count_values(alphas)} values, {text} trained{end}'
    if frozen:
        yield f'Not trained: {first_names(frozen)}'
    means = {name: conv.mean for name, conv in pws.items() if conv.mean is not None}
    if kept := [n for n, mean in means.items() if not mean.is_meta and mean.any()]:
        yield (
            f'Filters keep a constant mean in {len(kept)} of {len(pws)} PWS layers: '
            + first_names(kept)
        )
    if decayed:
        yield (
            f'Weight decay pulls {len(decayed)} of {len(alphas)} alphas towards 0, '
            f'unlike in the paper: {_by_parts(decayed, alphas)}. {NO_DECAY} switches '
            'it off'
        )
    plain = [
        name
        for name, layer in layers.items()
        if _part(name) == 'backbone' and kind_of(layer) == PLAIN
    ]
    if plain and any(_part(name) == 'backbone' for name in pws):
        yield f'Plain convolutions in a backbone with PWS: {first_names(plain)}'


def count_values(parameters: Mapping[str, nn.Parameter]) -> int:
    """Count the values in parameters. A shared parameter counts once."""
    return sum(p.numel() for p in set(parameters.values()))


def _describe_gammas(pws: Mapping[str, PWSConv2d]) -> str:
    gammas: dict[str, list[float]] = {}
    for name, conv in pws.items():
        gammas.setdefault(_part(name), []).append(conv.gamma)
    parts: dict[str, list[str]] = {}
    for part, values in gammas.items():
        ends = [f'{end(values):.3g}' for end in (min, max)]
        parts.setdefault(' to '.join(dict.fromkeys(ends)), []).append(part)
    return '; '.join(
        f'{values} in {first_names(names)}' for values, names in parts.items()
    )


def _by_parts(names: Collection[str], of: Collection[str]) -> str:
    """Join names; if all names of a part of the model are there, name the part."""
    parts: dict[str, list[str]] = {}
    for name in of:
        parts.setdefault(_part(name), []).append(name)
    texts = []
    for part, whole in parts.items():
        some = [name for name in whole if name in names]
        is_all = len(some) == len(whole) > 1
        texts += [f'all {len(whole)} of {part}'] if is_all else some
    return ', '.join(texts)


def _part(name: str) -> str:
    """Return the part of the model, such as 'backbone', that a layer belongs to."""
    return name.split('.')[0]
