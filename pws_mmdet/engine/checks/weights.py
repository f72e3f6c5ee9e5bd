"""A check that a checkpoint is one for the network that is to load it."""

from typing import Any

from torch import nn

from ...checkpoint.read import meta_of, weights_of
from ...checkpoint.weights import (
    check_finite,
    check_kind,
    renamed_on_loading,
    warn_of_other_shapes,
)


def check_weights(model: nn.Module, checkpoint: Any, resumes: bool) -> None:
    """Check a checkpoint before a model loads it.

    Args:
        model: The network that is to load it.
        checkpoint: The content of the file.
        resumes: The training goes on from the checkpoint. Otherwise only its weights
            are used.

    Raises:
        ValueError: If the checkpoint has no weights, weights of another network or
            of another kind of layers, or values that are not finite; or if it is to
            be resumed and has no state of a training.
    """
    weights = renamed_on_loading(model, weights_of(checkpoint))
    check_finite(weights, 'it', model)
    names = {name.removeprefix('module.') for name in model.state_dict()}
    if not names & set(weights):
        raise ValueError(
            f'it is of another network: its weights, such as {next(iter(weights))}, '
            f'have other names than those of this network, such as {min(names)}'
        )
    check_kind(model, weights)
    warn_of_other_shapes(model, weights)
    if resumes and not _can_be_resumed(checkpoint):
        raise ValueError(
            'it has no state of a training that can be resumed. Without --resume, '
            '--cfg-options load_from=FILE starts from its weights'
        )


def _can_be_resumed(checkpoint: Any) -> bool:
    state = meta_of(checkpoint)
    return (
        isinstance(state.get('epoch'), int)
        and isinstance(state.get('iter'), int)
        and isinstance(checkpoint.get('message_hub'), dict)
    )
