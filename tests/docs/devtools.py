"""Drive Chromium without a window by its DevTools protocol, over a pipe."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
FLAGS = (
    '--headless',
    '--no-sandbox',  # root has to
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--remote-debugging-pipe',
)


def find_browser() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A tab of the browser. It collects what pages log and request.

    Attributes:
        complaints: Texts of errors and warnings in the console.
        requests: URLs in the order in which they were requested.
        failures: URLs that could not be loaded, with the reason.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._id, self._buffer = 0, b''
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.failures: list[str] = []
        self._seen: set[tuple[str, str]] = set()
        self._session: str | None = None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        self.call('Page.setLifecycleEventsEnabled', enabled=True)

    def call(self, method: str, **params: Any) -> dict:
        """Call a method of the protocol, and return its result."""
        self._id += 1
        message = dict(id=self._id, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while (answer := self._receive()).get('id') != self._id:
            pass
        if 'error' in answer:
            raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def open(self, url: str, until: str = 'load') -> None:
        """Open a page, and wait for an event, such as 'load' or 'networkIdle'."""
        loader = self.call('Page.navigate', url=url)['loaderId']
        while (loader, until) not in self._seen:
            self._receive()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window in pixels. Narrow ones are those of a phone."""
        self.call(
            'Emulation.setDeviceMetricsOverride',
            **dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600),
        )

    def run(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.call(
            'Runtime.evaluate',
            **dict(expression=expression, returnByValue=True, awaitPromise=True),
        )
        if 'exceptionDetails' in answer:
            raise RuntimeError(answer['exceptionDetails'])
        return answer['result'].get('value')

    def _receive(self, timeout: float = 60) -> dict:
        end = time.monotonic() + timeout
        while b'\0' not in self._buffer:
            ready, *_ = select.select([self._read], [], [], end - time.monotonic())
            chunk = os.read(self._read, 1 << 20) if ready else b''
            if not chunk:
                raise TimeoutError('the browser does not answer')
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b'\0')
        event = json.loads(message)
        self._note(event.get('method', ''), event.get('params', {}))
        return event

    def _note(self, method: str, params: dict) -> None:
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif method == 'Network.loadingFailed' and not params.get('canceled'):
            self.failures.append(params['errorText'])
        elif method == 'Network.responseReceived':
            response = params['response']
            if response['status'] >= 400:
                self.failures.append(f'{response["url"]}: {response["status"]}')
        elif method == 'Runtime.exceptionThrown':
            self.complaints.append(str(params['exceptionDetails']))
        elif method == 'Runtime.consoleAPICalled' and params['type'] in (
            'error',
            'warning',
            'assert',
        ):
            self.complaints.append(str(params['args']))
        elif method == 'Log.entryAdded' and params['entry']['level'] != 'verbose':
            self.complaints.append(str(params['entry']))
        elif method == 'Page.lifecycleEvent':
            self._seen.add((params['loaderId'], params['name']))


@contextmanager
def opened_tab(browser: str, profile: Path) -> Iterator[Tab]:
    """Start a browser, and end it afterwards."""
    read_commands, write_commands = os.pipe()
    read_events, write_events = os.pipe()
    process = subprocess.Popen(
        [browser, *FLAGS, f'--user-data-dir={profile}', 'about:blank'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(3, 4),
        preexec_fn=_renamer(read_commands, write_events),
    )
    os.close(read_commands)
    os.close(write_events)
    try:
        yield Tab(write_commands, read_events)
    finally:
        process.terminate()
        process.wait(10)
        os.close(write_commands)
        os.close(read_events)


def _renamer(commands: int, events: int) -> Callable[[], None]:
    """Give the two pipes the numbers 3 and 4, as Chromium wants them."""

    def rename() -> None:
        # One of the numbers may be the other pipe: move both out of the way first.
        commands_, events_ = (os.dup(fd) for fd in (commands, events))
        while min(commands_, events_) < 5:
            commands_, events_ = (os.dup(fd) for fd in (commands_, events_))
        os.dup2(commands_, 3)
        os.dup2(events_, 4)

    return rename
