from collections.abc import Callable


class Observer:
    """A forward hook that reads what passes a module, and changes nothing.

    In copies and pickles of the module the hook does nothing, because its function may
    hold objects that must not be copied, such as the state of a training.

    Args:
        look: A function that takes the arguments of a forward hook. None does nothing.
    """

    def __init__(self, look: Callable | None = None) -> None:
        self.look = look

    def __call__(self, *args) -> None:
        if self.look is not None:
            self.look(*args)

    def __reduce__(self) -> tuple:
        return Observer, ()
