"""Ctrl-C and SIGTERM: what is being done ends in order, and in any case within seconds.

The first signal raises KeyboardInterrupt in the main thread, which undoes what was begun. That may not be enough: some
library may swallow the exception, as destructors and imports do, or compute for minutes without coming back to Python.
So a thread waits a little and then ends the process itself: it deletes what was half written, ends the processes that
were started, and says the same words.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from bgectl import console
from bgectl.errors import Interrupted

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

INTERRUPTED = "interrupted"
SECONDS_TO_UNWIND = 3.0
"""How long the orderly end may take."""
LAST_WORDS = "BGECTL_LAST_WORDS"
"""The file where a process of several leaves what it would say: the launcher sends SIGTERM also when another one has
failed, of which it tells itself.
"""
ENDING = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Of this process.

    Attributes:
        caught: The signal that ends it; 0 before.
        ended: The end has come; signals are ignored.
        say: Returns message and hint for when it is ended.
        half_written: Files and folders to delete.
        told: It has been said.
    """

    def __init__(self) -> None:
        self.caught = 0
        self.ended = False
        self.say: Callable[[], tuple[str, str | None]] = lambda: (INTERRUPTED, None)
        self.half_written: list[Path] = []
        self.told = False
        self.waking: tuple[int, int] | None = None


_state = _State()


def caught() -> int:
    """The signal that ends this process; 0 where there was none."""
    return _state.caught


def interruption() -> Interrupted:
    """What to raise, or tell, in place of a KeyboardInterrupt."""
    message, hint = _state.say()
    return Interrupted(message, signal=_state.caught or signal.SIGINT, hint=hint)


def going_on(say: Callable[[], tuple[str, str | None]]) -> None:
    """Set what is said when a signal ends the process from here on.

    Args:
        say: Returns a message that says that it was interrupted, and a hint: how to go on, or what was kept.
    """
    _state.say = say


def nothing_written() -> None:
    """Let it be said that nothing was written: outputs are renamed into place at the end."""
    going_on(lambda: (f"{INTERRUPTED}; nothing was written", None))


@contextmanager
def half_written(path: Path) -> Iterator[None]:
    """Name a file or folder that the caller deletes when something fails, for the case that it does not come to it."""
    _state.half_written.append(path)
    try:
        yield
    finally:
        _state.half_written.remove(path)


@contextmanager
def handled(*, last: bool = False) -> Iterator[None]:
    """Let signals end what is done inside in order. In other threads than the main one it does nothing.

    Args:
        last: The process ends after it, which is watched over too: it may wait for threads that still compute.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _state
    _state = _State()
    former: dict[int, Any] = {}
    for number in ENDING:
        # A shell lets what it starts in the background ignore Ctrl-C.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            former[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        if last:
            _let_end(list(former))
        else:
            _state.ended = True
            if _state.waking is not None:
                signal.set_wakeup_fd(-1)
                os.close(_state.waking[1])
            for known, handler in former.items():
                signal.signal(known, handler)
            _state = before


def _let_end(numbers: list[int]) -> None:
    """What is left of the process is its end; where a signal began it, it stays watched over."""
    _state.told = True
    if not _state.caught:
        _state.ended = True
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    """The handler. Later signals change nothing: the end is under way, and has its time."""
    if _state.ended or _state.caught:
        return
    ending(number)
    raise KeyboardInterrupt


def ending(number: int) -> None:
    """Tell that a signal which the caller handled has ended the work: what is left to do has its time, too."""
    if not _state.caught:
        _state.caught = number
        threading.Thread(target=_wait_and_end, args=(_state,), name="end-watch", daemon=True).start()


def end_at_once(number: int) -> NoReturn:
    """Raise what ends the process where a handler of the caller's own decided so.

    Raises:
        KeyboardInterrupt: Always.
    """
    _end(number, None)
    raise KeyboardInterrupt


def watch() -> None:
    """From here on, see signals also while the main thread computes without coming back to Python."""
    if _state.waking is not None or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not _end and signal.getsignal(signal.SIGTERM) is not _end:
        return
    _state.waking = os.pipe()
    for end in _state.waking:
        os.set_blocking(end, end == _state.waking[0])
    signal.set_wakeup_fd(_state.waking[1], warn_on_full_buffer=False)
    threading.Thread(target=_look, args=(_state, _state.waking[0]), name="signal-watch", daemon=True).start()


def _look(state: _State, waking: int) -> None:
    while data := os.read(waking, 64):
        number = next((number for number in data if number in ENDING), None)
        handler = None if number is None else signal.getsignal(number)
        if number is not None and handler is _end:
            # The handler proper runs in the main thread, if that comes back in time.
            _wait_and_end(state, number)
    os.close(waking)


def _wait_and_end(state: _State, number: int = 0) -> None:
    until = time.monotonic() + SECONDS_TO_UNWIND
    while time.monotonic() < until:
        if state.ended:
            return
        time.sleep(0.05)
    if state.ended or state is not _state:
        return
    state.ended = True
    _give_up(state, state.caught or number)


def _give_up(state: _State, number: int) -> None:
    """End the process, whatever the main thread is doing."""
    import shutil

    for path in state.half_written:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not state.told and ("LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"):
        with contextlib.suppress(OSError, ValueError):
            if not left_to_launcher(*state.say(), number):
                os.write(2, _words(state))
    sys.modules.pop("wandb", None)
    leave(128 + number)


def leave(code: int) -> NoReturn:
    """End the process and those it started, without the seconds that Python takes to tidy up after large libraries."""
    import multiprocessing

    if "wandb" in sys.modules:
        # It sends its last records when Python ends.
        sys.exit(code)

    children = multiprocessing.active_children()
    for process in children:
        process.terminate()
    for process in children:
        process.join(0.2)
        process.kill()
    os._exit(code)


def left_to_launcher(message: str, hint: str | None, number: int) -> bool:
    """Leave what is to be said after a signal to the launcher, if there is one that knows why it came."""
    import json

    path = os.environ.get(LAST_WORDS)
    if path is None or number != signal.SIGTERM:
        return False
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as stream:
        json.dump({"message": message, "hint": hint}, stream)
    return True


def _words(state: _State) -> bytes:
    """What is said, for a terminal whose bar may be half drawn."""
    message, hint = state.say()
    if console.as_json():
        return console.json_line("error", message=message, **({"hint": hint} if hint else {}))
    clear = "\r\x1b[2K\x1b[?25h" if "bgectl.bar" in sys.modules and os.isatty(2) else ""
    below = f"hint: {hint}\n" if hint else ""
    return f"{clear}error: {message}\n{below}".encode(errors="replace")


def _in_child() -> None:
    """A forked process has its own end: nothing is inherited but what Python does anyway."""
    if _state.waking is not None:
        signal.set_wakeup_fd(-1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _end:
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
