"""Exit codes, and where messages go."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bgectl import cli
from bgectl.cli import app
from bgectl.errors import DataError, UsageError


@pytest.mark.parametrize(("words", "hint"), [
    (["minee"], "did you mean `bgectl mine`?"),
    (["trian"], "did you mean `bgectl train`?"),
    (["validate"], "did you mean `bgectl data validate`?"),
    (["train", "bas"], "did you mean `bgectl train base`?"),
    (["xyzzy"], "commands: init, data validate"),
    (["--seed", "3", "mine"], "a command's options come after the command"),
    (["mine", "--sed", "3"], "did you mean `--seed`?"),
])  # fmt: skip
def test_usage_errors(bgectl, tmp_path, words, hint):
    done = bgectl(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("raised", "code", "said"), [
    (UsageError("is wrong", where="here", hint="do this"), 2, "error: here: is wrong\nhint: do this\n"),
    (DataError("[bold]odd[/bold]"), 1, "error: [bold]odd[/bold]\n"),
    (KeyboardInterrupt(), 130, "error: interrupted\n"),
    (OSError(28, "No space left on device", "out.jsonl"), 1, "error: out.jsonl: No space left on device\n"),
    (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero\nhint: `--debug` shows where"),
])  # fmt: skip
def test_what_an_exception_becomes(monkeypatch, capsys, raised, code, said):
    def fail(words):
        raise raised

    monkeypatch.setattr(app, "run", fail)
    with pytest.raises(SystemExit) as ending:
        cli.main(["mine"])
    assert ending.value.code == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)


def test_debug_shows_the_traceback(bgectl, tmp_path):
    done = bgectl("mine", "--sed", "3", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "base", "--help"], ["schema", "train", "base"]])
def test_a_reader_that_went_away(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "bgectl", *words]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bgectl", "schema", "train base"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_interrupt_while_working(tmp_path):
    """Ctrl-C while a command waits for its input."""
    fifo = tmp_path / "bgectl.yaml"
    os.mkfifo(fifo)
    config = tmp_path / "c.yaml"
    os.mkfifo(config)
    command = [sys.executable, "-m", "bgectl", "mine", "--config", str(config)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell starts in the background are deaf to Ctrl-C, and so would this program be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # The program opens the pipe for reading when it is up; this open returns then.
    with config.open("w"):
        # Between the open and the read Python does not look at signals.
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


def test_colour_of_messages(bgectl, tmp_path):
    assert "\x1b" not in bgectl("minee", cwd=tmp_path).stderr
