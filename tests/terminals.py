"""A real pseudo-terminal with the command in it, and what a person would see on it."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

import psutil
import pyte


class Terminal:
    """The command on a terminal of its own; keys are typed as a person types them.

    Args:
        words: The command line after `bgectl`.
        cwd: Working directory.
        columns: Width.
        env: Variables beside this process's; None takes one away.
        program: What is run in place of `bgectl`.
    """

    def __init__(self, *words, cwd=None, columns=100, env=None, program=("-m", "bgectl")):
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI"):
            if name not in (env or {}):
                environment.pop(name, None)
        environment = {name: value for name, value in environment.items() if value is not None}
        self.screen = pyte.Screen(columns, 40)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.widest = 0
        self.started = time.monotonic()
        self.pid, self.master = pty.fork()
        if not self.pid:
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                if cwd is not None:
                    os.chdir(cwd)
                # Before the program looks at it.
                time.sleep(0.05)
                os.execve(sys.executable, [sys.executable, *program, *map(str, words)], environment)
            finally:
                os._exit(99)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = psutil.Process(self.pid)
        self.family = set()

    def read(self, seconds):
        """Take what comes within so many seconds; whether the terminal is still in use."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def wait_for(self, text, seconds=90):
        """Wait until the screen shows a text."""
        until = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < until, f"no {text!r} on the screen:\n{self.text}"
            assert self.read(0.05), f"ended without {text!r}:\n{self.text}"

    def wait_seconds(self, seconds):
        """Look on for some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(min(left, 0.05))

    @property
    def lines(self):
        """The lines on the screen, without the empty ones at its end."""
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    @property
    def text(self):
        """The screen."""
        return "\n".join(self.lines)

    def note_family(self):
        """Remember the processes there are, to see later that none is left."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= {self.process, *self.process.children(recursive=True)}

    def press(self, key=b"\x03"):
        """Type a key."""
        self.note_family()
        os.write(self.master, key)

    def type(self, text):
        """Type some keys."""
        os.write(self.master, text.encode())

    def kill(self, number=signal.SIGTERM):
        """Send a signal to the command alone."""
        self.note_family()
        os.kill(self.pid, number)

    def end(self, seconds=90):
        """Wait for the end; returns the exit code, as a shell has it, and the seconds that took."""
        started = time.monotonic()
        alive = True
        while time.monotonic() - started < seconds:
            alive = self.read(0.02) if alive else time.sleep(0.02)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                took = time.monotonic() - started
                while alive and select.select([self.master], [], [], 0.05)[0]:
                    alive = self.read(0)
                os.close(self.master)
                code = os.waitstatus_to_exitcode(status)
                return (128 - code if code < 0 else code), took
        self.note_family()
        for process in self.family:
            if process.is_running():
                process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{self.text}")

    def left(self):
        """The processes of the family that are still there a moment later."""
        _, alive = psutil.wait_procs([one for one in self.family if one.pid != self.pid], timeout=2)
        return alive
