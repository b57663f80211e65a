"""Signals on a thread of their own, so that they are heard while the event loop is stuck in a call.

The interpreter's own C handler writes the number to a socket at once; Python-level handlers, asyncio's among them, wait
for the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def heard(on_signal: Callable[[], None]) -> Iterator[None]:
    """Calls ``on_signal``, on another thread, for each of SIGNALS. Enter it on the main thread."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := receiver.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    on_signal()

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()  # the thread reads the end
        listener.join()
        receiver.close()


def exit_after(seconds: float, code: Callable[[], int]) -> None:
    """The process ends then, with what ``code`` says then, whatever else it does."""
    timer = threading.Timer(seconds, lambda: os._exit(code()))
    timer.daemon = True
    timer.start()
