"""The program on real terminals: bars, widths, colours, and Ctrl-C at each stage."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest

pytest.importorskip("pyte")
pytest.importorskip("pty")

from forked import make_cross_encoder
from terminals import Terminal

SECONDS = 10
"""Within 5 on a machine that does nothing else."""

WORK = """
import sys, time
from bgectl import console
from bgectl.cli import main
from bgectl.cli import app

def run(words):
    console.info("before")
    for label, total in (("Encoding passages", 1234567), ("Reading", None), ("Checking na\\u00efve \\u6a21", 40)):
        with console.progress(label, total, "texts") as advance:
            for step in range(4):
                advance((total or 400) // 4)
                time.sleep(0.3)
                if step == 2:
                    console.warn("in the middle")
    console.info("after")
    return 0

app.run = run
main()
"""
"""A program with three stages, which shows its bars as every command does."""


def work(**how):
    return Terminal(program=("-c", WORK), **how)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_bars_fit_the_width_and_leave_nothing(columns):
    terminal = work(columns=columns)
    frames = []
    while terminal.read(0.5):
        frames.append(terminal.lines)
    code, _ = terminal.end()
    assert code == 0
    assert terminal.lines == ["before", *["warning: in the middle"] * 3, "after"]
    said = {"before", "after", "warning: in the middle", ""}
    bars = [[line for line in frame if line not in said] for frame in frames]
    # A line that is too long for the terminal would stand there as two.
    assert max(map(len, bars)) == 1
    shown = [bar[0] for bar in bars if bar]
    assert any(line.startswith("Encoding passages") for line in shown)
    assert any(line.startswith("Checking na") for line in shown)
    assert max(map(len, shown)) < columns
    whole = [line for line in shown if line.startswith("Encoding passages") and "left" in line]
    assert whole, "the time that is left is the last thing to go"
    if columns > 40:
        assert re.search(r"617,282/1,234,567( texts)?  [\d,]+/s .*0\.\d s left|  \d\.\d s left", "\n".join(whole))
    if columns == 200:
        assert "━" in whole[0]


@pytest.mark.parametrize(("environment", "colours", "bars"), [
    ({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, True, True),
])  # fmt: skip
def test_what_kind_of_terminal_it_is(environment, colours, bars):
    terminal = work(env=environment)
    code, _ = terminal.end()
    assert code == 0, terminal.text
    assert bool(re.search(rb"\x1b\[[\d;]*3\d", terminal.raw)) == colours
    assert (b"Encoding passages" in terminal.raw) == bars
    assert terminal.lines == ["before", *["warning: in the middle"] * 3, "after"]
    if "LC_ALL" in environment:
        assert terminal.raw.isascii(), "no byte that the terminal cannot show"


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"CI": "true"}])
def test_no_terminal_has_no_bars(environment):
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-c", WORK], env={**plain, "TERM": "xterm-256color", **environment}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stderr)
    assert said.splitlines() == ["before", *["warning: in the middle"] * 3, "after"]
    assert ("\x1b[" in done.stderr) == ("FORCE_COLOR" in environment)
    assert not re.search(r"\x1b\[[\d;?]*[A-HJ-Zf-l]", done.stderr), "nothing moves the cursor"


def test_tables_and_messages_on_a_narrow_terminal(tmp_path):
    code = (
        "from bgectl import console\n"
        "console.table('Training data', ['dataset', 'rows', 'queries a step', 'passages a query', 'left out'],"
        " [['rows.jsonl', '400', '8', '8', '0']])\n"
        "console.info('pooling cls (default), normalised (default), no query prompt')\n"
    )
    terminal = Terminal(program=("-c", code), columns=40)
    assert terminal.end()[0] == 0
    assert terminal.lines == [
        "Training data", "rows.jsonl", "  rows: 400", "  queries a step: 8", "  passages a query: 8", "  left out: 0",
        "pooling cls (default), normalised", "(default), no query prompt",
    ]  # fmt: skip


def test_texts_that_the_locale_cannot_show(write_rows, tmp_path):
    rows = write_rows([{"query": "模型 naïve", "pos": ["é"], "neg": ["ü"]}], "naïve-模型.jsonl")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "120"}
    command = [sys.executable, "-m", "bgectl", "data", "stats", os.fsencode(rows)]
    for more in ([], ["--format", "json"], ["--log-format", "json", "-v"]):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    terminal = Terminal("data", "stats", rows.name, cwd=tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0",
                                                                     "PYTHONCOERCECLOCALE": "0"})  # fmt: skip
    assert terminal.end()[0] == 0, terminal.text


# -- Ctrl-C --


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows that take a while."""
    folder = tmp_path_factory.mktemp("stages")
    draw = random.Random(0)
    words = [f"{first}{second}" for first in ("ka", "lo", "mi", "ru") for second in ("ban", "dor", "fel", "gus")]

    def text(count):
        return " ".join(draw.choices(words, k=draw.randint(1, count)))

    lines = [
        json.dumps({"query": f"{text(6)} {number}", "pos": [f"{text(8)} {number}"], "neg": [f"{text(8)} {number} a"]})
        for number in range(20_000)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "few.jsonl").write_text("\n".join(lines[:200]) + "\n")
    # As long as it takes, and small on disk.
    zstandard = pytest.importorskip("zstandard")
    block = ("\n".join(lines[:2000]) + "\n").encode()
    compressor = zstandard.ZstdCompressor(level=1)
    with (folder / "long.jsonl.zst").open("wb") as raw, compressor.stream_writer(raw, closefd=False) as stream:
        for _ in range(8000):
            stream.write(block)
    return folder


def ended(terminal, *, by="key", code=None, hint=None):
    """Interrupt; then see that all is in order. Returns what is on the screen."""
    terminal.press() if by == "key" else terminal.kill()
    got, seconds = terminal.end()
    print(f"{seconds:.1f} s")
    assert got == (130 if by == "key" else 143), terminal.text
    assert seconds < SECONDS
    assert terminal.left() == []
    assert "error: interrupted" in terminal.text
    assert "Traceback" not in terminal.text
    assert "Exception ignored" not in terminal.text
    assert not re.search("━|\\^C", terminal.text.split("error: ")[-1])
    if hint:
        assert hint in " ".join(terminal.text.split())
    return terminal.text


def no_parts(folder):
    left = [path for path in folder.rglob("*") if ".part" in path.name or path.name.startswith("run-")]
    assert left == []


@pytest.mark.parametrize("by", ["key", "kill"])
@pytest.mark.parametrize(("words", "label"), [
    (["data", "validate", "long.jsonl.zst"], "checking"),
    (["data", "validate", "long.jsonl.zst", "--fix", "fixed.jsonl"], "checking"),
    (["data", "stats", "long.jsonl.zst"], "counting"),
])  # fmt: skip
def test_data(place, words, label, by):
    terminal = Terminal(*words, cwd=place)
    terminal.wait_for(label)
    text = ended(terminal, by=by, hint="nothing was written")
    assert label not in text, "the bar is gone"
    no_parts(place)
    assert not (place / "fixed.jsonl").exists()


def test_two_reading_processes(place, tmp_path):
    rows = tmp_path / "rows.jsonl"
    with rows.open("wb") as stream:
        for _ in range(80):
            shutil.copyfileobj((place / "rows.jsonl").open("rb"), stream)
    terminal = Terminal("data", "validate", "rows.jsonl", "--workers", "2", cwd=tmp_path)
    terminal.wait_for("checking")
    ended(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.6, 1.5, 3.0])
@pytest.mark.parametrize("words", [["mine"], ["train", "base"], ["train", "base", "--nproc", "2"]])
def test_while_libraries_are_loaded(place, tiny_bert, tmp_path, words, delay):
    ways = ["-m", tiny_bert, "-t", "few.jsonl", "-o", tmp_path / "out"]
    if words == ["mine"]:
        ways = ["rows.jsonl", tmp_path / "m.jsonl", "--embedder-name-or-path", tiny_bert]
    terminal = Terminal(*words, *ways, cwd=place)
    terminal.wait_seconds(delay)
    ended(terminal)
    no_parts(tmp_path)


@pytest.mark.slow
def test_mining(place, tiny_bert, tmp_path):
    """Each run goes on from where the one before was ended."""
    words = ["mine", place / "rows.jsonl", "mined.jsonl", "--embedder-name-or-path", tiny_bert]
    text = ""
    for label, by in (
        ("Encoding passages", "key"), ("Encoding passages", "kill"), ("Searching", "key"), ("Choosing", "key"),
    ):  # fmt: skip
        terminal = Terminal(*words, cwd=tmp_path)
        terminal.wait_for(label)
        terminal.wait_seconds(0.5)
        text = ended(terminal, by=by)
        no_parts(tmp_path)
        assert not (tmp_path / "mined.jsonl").exists()
    assert "60,000 texts" in text
    assert "hint: the same command goes on from there" in text


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "relabel"])
def test_scoring(place, tiny_bert, tmp_path, command):
    judge = make_cross_encoder(tiny_bert, tmp_path / "judge")
    more = ["--shard-size", "500", "--work-folder", tmp_path / "work"]
    terminal = Terminal(command, "rows.jsonl", tmp_path / "out.jsonl", "--reranker", judge, *more, cwd=place)
    terminal.wait_for("Scoring")
    terminal.wait_seconds(2)
    ended(terminal, hint="hint: the same command goes on from there")
    no_parts(tmp_path)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["key", "kill"])
@pytest.mark.parametrize("more", [[], ["--nproc", "2"]], ids=["one process", "two"])
def test_training(place, tiny_bert, tmp_path, more, by):
    words = ["train", "base", "-m", tiny_bert, "-t", "few.jsonl", "-o", tmp_path / "out", "-b", "4", "--epochs", "500",
             "--train-group-size", "2"]  # fmt: skip
    terminal = Terminal(*words, *more, cwd=place)
    terminal.wait_for("/s  ")
    text = ended(terminal, by=by, hint="hint: the same command with --resume auto goes on from there")
    assert "finishing the step and writing a checkpoint" in text
    assert "Training  " not in text
    no_parts(tmp_path)
    assert list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_evaluation(place, tiny_bert, tmp_path):
    data = tmp_path / "eval"
    (data / "qrels").mkdir(parents=True)
    texts = [json.loads(line)["pos"][0] for line in (place / "rows.jsonl").read_text().splitlines()]
    corpus = "".join(json.dumps({"_id": f"{number}", "text": text}) + "\n" for number, text in enumerate(texts))
    (data / "corpus.jsonl").write_text(corpus)
    (data / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "ka"}) + "\n")
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    terminal = Terminal("eval", tiny_bert, "--data", data, "-o", tmp_path / "report.json", cwd=place)
    terminal.wait_for("Encoding passages")
    ended(terminal, hint="nothing was written")
    no_parts(tmp_path)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.slow
def test_merging(tiny_words, tmp_path):
    from decoders import make_decoder
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = make_decoder("mistral", tiny_words, tmp_path / "base", hidden_size=512, intermediate_size=2048,
                        num_hidden_layers=24)  # fmt: skip
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    terminal = Terminal("merge-lora", tmp_path / "adapter", tmp_path / "merged", "--base", base)
    terminal.wait_for("Merging")
    ended(terminal, hint="nothing was written")
    no_parts(tmp_path)
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_pipeline(place, tiny_bert, tmp_path):
    """The stage that runs is interrupted; the same command goes on, and comes to its end."""
    content = {
        "run": {"data": [str(place / "few.jsonl")], "model": tiny_bert, "stages": ["mine", "train-base"]},
        "mine": {"range": "0-50", "negative_number": 2, "devices": ["cpu"]},
        "train": {"base": {
            "num_train_epochs": 60, "per_device_train_batch_size": 4, "train_group_size": 2, "logging_steps": 1,
            "device": "cpu", "save_steps": 0,
        }},
    }  # fmt: skip
    (tmp_path / "bgectl.yaml").write_text(json.dumps(content))
    for stage, code in (("mine", 130), ("train-base", 143), ("train-base", 130)):
        terminal = Terminal("run", cwd=tmp_path)
        terminal.wait_for(f"▶   {stage}")
        # Of training a step is seen; mining has no time to say anything.
        if stage == "train-base":
            terminal.wait_for("steps, loss")
        terminal.press() if code == 130 else terminal.kill()
        got, seconds = terminal.end()
        assert (got, seconds < SECONDS) == (code, True), terminal.text
        assert terminal.left() == []
        assert f"error: {stage}: interrupted" in terminal.text
        assert "hint: `bgectl run` goes on from there" in terminal.text
        assert f"■   {stage}" in terminal.text
        no_parts(tmp_path)
    terminal = Terminal("run", cwd=tmp_path)
    assert terminal.end()[0] == 0, terminal.text
    assert "✔   train-base   done" in terminal.text


HANGS = """
import signal, sys, time, pathlib
from bgectl import signals
from bgectl.cli import main, app
from bgectl.atomic import written_beside

def run(words):
    signals.watch()
    signals.going_on(lambda: ("interrupted; half is kept", "go on"))
    with written_beside(pathlib.Path("out")) as beside:
        beside.write_text("half")
        sys.stderr.write("here\\n")
        sys.stderr.flush()
        {work}
    return 0

app.run = run
main()
"""


@pytest.mark.parametrize("work", [
    "import ctypes; ctypes.CDLL(None).sleep(100); time.sleep(100)",
    "\n".join(["while True:", *[" " * 12 + line for line in (
        "try:", "    time.sleep(100)", "except BaseException: pass")]]),
], ids=["in C", "swallowed"])  # fmt: skip
def test_what_does_not_come_back_is_ended(work, tmp_path):
    terminal = Terminal(program=("-c", HANGS.replace("{work}", work)), cwd=tmp_path)
    terminal.wait_for("here")
    text = ended(terminal, hint="error: interrupted; half is kept hint: go on")
    assert "here" in text
    assert list(tmp_path.iterdir()) == []


def test_pressing_twice_changes_nothing(tmp_path):
    lines = ["try:", "    time.sleep(100)", "finally:", "    time.sleep(1)", "    print('tidied', file=sys.stderr)"]
    slow = "\n        ".join(lines)
    terminal = Terminal(program=("-c", HANGS.replace("{work}", slow)), cwd=tmp_path)
    terminal.wait_for("here")
    terminal.press()
    terminal.wait_seconds(0.3)
    text = ended(terminal)
    assert "tidied" in text
    assert list(tmp_path.iterdir()) == []


def test_what_the_shell_lets_ignore_ctrl_c_ignores_it(tmp_path):
    """As `nohup` and `&` of a script do."""
    code = HANGS.replace("{work}", "time.sleep(1)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stderr.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "out").read_text() == "half"


# -- A pipeline --

VIEW = """
from types import SimpleNamespace
import sys, time
from bgectl import console
from bgectl.pipeline.view import View

stages = [SimpleNamespace(command=name, name=name) for name in ("validate", "mine", "train-base", "eval")]
view = View(stages)
with view.shown():
    view.set(stages[0], "unchanged", seconds=1.0)
    view.set(stages[1], "running", "range changed")
    view.heard(stages[1], {"level": "progress", "task": "Encoding passages", "done": 1200, "total": 5000,
                           "unit": "texts", "rate": 400.0, "remaining": 9.5})
    time.sleep(0.6)
    view.heard(stages[1], {"level": "warning", "message": "the range goes beyond the pool"})
    view.set(stages[1], "done", seconds=75.0)
    view.set(stages[2], "failed")
"""


@pytest.mark.parametrize("columns", [36, 48, 120])
def test_the_table_of_a_pipeline_keeps_its_columns(columns):
    terminal = Terminal(program=("-c", VIEW), columns=columns)
    frames = []
    while terminal.read(0.2):
        frames.append(terminal.lines)
    assert terminal.end()[0] == 0, terminal.text
    running = [line for frame in frames for line in frame if "mine" in line and "running" in line]
    assert running
    if columns == 120:
        assert "Encoding passages 1,200/5,000 texts, 400/s, 9.5 s left" in running[-1]
    assert max(map(len, terminal.lines)) <= columns
    shown = [line.split() for line in terminal.lines]
    assert ["✔", "mine", "done", "1:15"] in shown
    assert ["✘", "train-base", "failed"] in shown
    assert ["·", "eval", "waiting"] in shown
    assert terminal.text.count("validate") == 1, "the table is drawn over itself"
    assert "warning: mine: the range" in " ".join(terminal.text.split())
