from collections.abc import Callable


class Observer:
    """A forward hook that looks at what passes, and changes nothing.

    Copies and pickles of the module have one that does nothing: what it looks with,
    such as a training's state, is not theirs.

    Args:
        look: Takes what the hook gets. None does nothing.
    """

    def __init__(self, look: Callable | None = None) -> None:
        self.look = look

    def __call__(self, *args) -> None:
        if self.look is not None:
            self.look(*args)

    def __reduce__(self) -> tuple:
        return Observer, ()
