"""Run the forward passes of several batches in lock step.

Each forward pass has a thread of its own, and one thread runs at a time. A pass stops
where the output of a layer is first used. When the passes of all batches have come to a
layer, it can be fitted and replaced, and they go on. So one forward pass of each batch
is enough for all layers.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Forward
from .observe import Call, Observer

MAX_THREADS = 1024  # of all forward passes, each of which has its own threads


class _Cancelled(BaseException):
    """Ends the thread of a forward pass that nobody needs any more."""


class Pass:
    """The forward pass of one batch.

    Attributes:
        thread: The thread that runs it.
        call: The call at which it has stopped; None before the first one and at the
            end.
        ended: Whether it has come to its end.
        reached: Names of the modules that it has reached, among those to note.
    """

    def __init__(self, forward: Forward, model: nn.Module, batch: Any) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.call: Call | None = None
        self.ended = False
        self.reached: set[str] = set()
        self.observer = Observer(self._wait)
        self._arguments = forward, model, batch
        self._stream: Any = None
        if torch.cuda.is_initialized():
            self._stream = torch.cuda.current_stream()
        self._error: BaseException | None = None
        self._cancelled = False
        self._resumed, self._stopped = threading.Semaphore(0), threading.Semaphore(0)

    def _run(self) -> None:
        self._resumed.acquire()
        try:
            if not self._cancelled:
                forward, model, batch = self._arguments
                # A new thread does not inherit these.
                with torch.no_grad(), torch.cuda.stream(self._stream), self.observer:
                    forward(model, batch)
                self.observer.finish()
        except _Cancelled:
            pass
        except BaseException as e:
            self._error = e
        self.ended = True
        self._stopped.release()

    def _wait(self, call: Call) -> None:
        self.call = call
        self._stopped.release()
        self._resumed.acquire()
        if self._cancelled:
            raise _Cancelled

    def advance(self) -> None:
        """Run it until its next stop, or to its end.

        Raises:
            BaseException: What the forward pass raised.
        """
        if self.ended:
            return
        self.call = None
        self._resumed.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End its thread."""
        self._cancelled = True
        self._resumed.release()
        self.thread.join()


class LockStep:
    """Forward passes that stop at the same layers; a context manager.

    At its end it ends all passes.

    Args:
        forward: Calls a network with a batch.
        number: The number of passes that will be started.
    """

    def __init__(self, forward: Forward, number: int) -> None:
        self.forward = forward
        self.skipped: set[str] = set()  # layers at which passes no longer stop
        self._passes: dict[int | None, Pass] = {}
        self._hooks: list[Any] = []
        self._threads = torch.get_num_threads()
        self._most = max(1, min(self._threads, MAX_THREADS // max(number, 1)))

    def __enter__(self) -> 'LockStep':
        if self._most < self._threads:
            torch.set_num_threads(self._most)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._passes.values():
            one.cancel()
        for hook in self._hooks:
            hook.remove()
        if self._most < self._threads:
            torch.set_num_threads(self._threads)

    def start(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        names: Iterable[str],
        noted: Mapping[nn.Module, str] | None = None,
    ) -> list[Pass]:
        """Prepare the forward passes of a network, one for each batch.

        Args:
            model: The network.
            batches: As ``forward`` takes them.
            names: Names of the convolutions at which the passes stop.
            noted: Modules to note in ``Pass.reached``, each with its name.
        """
        for name in names:
            module = model.get_submodule(name)
            self._hooks.append(
                module.register_forward_hook(
                    lambda m, x, y, name=name: self._note_call(name, x, y)
                )
            )
        for module, name in (noted or {}).items():
            self._hooks.append(
                module.register_forward_hook(
                    lambda m, x, y, name=name: self._note_module(name)
                )
            )
        passes = [Pass(self.forward, model, batch) for batch in batches]
        for one in passes:
            one.thread.start()
            self._passes[one.thread.ident] = one
        return passes

    def _note_call(self, name: str, x: tuple, y: Tensor) -> None:
        # Other calls of the same module, in other threads, are not of a pass.
        one = self._passes.get(threading.get_ident())
        if one is not None and name not in self.skipped:
            one.observer.note(name, x[0], y)

    def _note_module(self, name: str) -> None:
        one = self._passes.get(threading.get_ident())
        if one is not None:
            one.reached.add(name)


def next_layer(passes: Sequence[Pass]) -> str | None:
    """Run passes until all have stopped.

    Returns:
        The layer at which most of them have stopped; None if all have ended.
    """
    for one in passes:
        if one.call is None:
            one.advance()
    names = [one.call.name for one in passes if one.call is not None]
    return max(names, key=names.count, default=None)
