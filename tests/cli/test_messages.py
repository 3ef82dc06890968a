"""What is said on stderr: --quiet, --verbose, and one JSON object a line."""

import json
import logging
import os
import sys
import time
from datetime import datetime, timedelta

import pytest

from bgectl import cli, console
from bgectl.cli import app

COMMON = {"time", "level"}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in (console.LOG_FORMAT, console.VERBOSITY):
        monkeypatch.delenv(name, raising=False)


def records(text):
    """The JSON objects of all lines; every line is one."""
    found = [json.loads(line) for line in text.splitlines()]
    for entry in found:
        assert set(entry) > COMMON
        assert datetime.fromisoformat(entry["time"]).utcoffset() == timedelta(0)
    return found


@pytest.fixture
def rows(write_rows, tiny_words):
    texts = [f"{first} {second}" for first in tiny_words[:20] for second in tiny_words[20:]]
    return write_rows(
        [{"query": f"{text} ?", "pos": [text], "neg": texts[place + 1 : place + 4]} for place, text in
         enumerate(texts[:80])]
    )  # fmt: skip


def test_mining_in_json(inside, rows, tiny_bert, tmp_path):
    out = tmp_path / "mined.jsonl"
    done = inside("mine", rows, out, "--embedder-name-or-path", tiny_bert, "--log-format", "json", "--range", "1-20")
    assert done.returncode == 0
    found = records(done.stderr)
    assert {entry["level"] for entry in found} <= {"info", "warning", "progress"}
    tables = [entry["table"] for entry in found if "table" in entry]
    assert [sorted(table) for table in tables] == [["columns", "rows", "title"]]
    assert {len(row) for row in tables[0]["rows"]} == {len(tables[0]["columns"])}
    encoding = next(entry for entry in found if entry.get("task") == "Encoding queries")
    assert set(encoding) == COMMON | {"task", "done", "total", "unit", "rate", "remaining"}
    assert (encoding["done"], encoding["total"], encoding["unit"], encoding["remaining"]) == (80, 80, "texts", 0)
    assert encoding["rate"] > 0
    assert any("mined" in entry.get("message", "") for entry in found)


def test_training_in_json(inside, rows, tiny_bert, tmp_path):
    done = inside(
        "train", "base", "-m", tiny_bert, "-t", rows, "-o", tmp_path / "out", "-b", "8", "--logging-steps", "2",
        "--log-format", "json", "--train-group-size", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [entry for entry in records(done.stderr) if entry.get("task") == "train"]
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [entry["done"] for entry in steps] == [entry["step"] for entry in log if "loss" in entry]
    assert [entry["loss"] for entry in steps] == [entry["loss"] for entry in log if "loss" in entry]
    last = steps[-1]
    assert set(last) == COMMON | {
        "task", "done", "total", "unit", "rate", "remaining", "loss", "learning_rate", "examples_per_second",
    }  # fmt: skip
    assert (last["done"], last["total"], last["unit"], last["remaining"]) == (10, 10, "steps", 0)


def test_held_out_measures_are_numbers(monkeypatch, capfd):
    monkeypatch.setenv(console.LOG_FORMAT, "json")
    console.info("step 5", measures={"nDCG@10": 0.25})
    entry = records(capfd.readouterr().err)[0]
    assert (entry["level"], entry["message"], entry["measures"]) == ("info", "step 5", {"nDCG@10": 0.25})


@pytest.mark.parametrize("words", [
    ["mine", "--sed", "3", "--log-format", "json"], ["--log-format=json", "minee"], ["minee", "--log_format", "json"],
    ["mine", "--range", "x", "--log-format=json"], ["data", "validate", "nowhere.jsonl", "--log-format", "json"],
])  # fmt: skip
def test_errors_in_json_even_of_the_command_line(bgectl, tmp_path, words):
    done = bgectl(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    entries = records(done.stderr)
    assert [entry["level"] for entry in entries] == ["error"]
    assert entries[0]["message"]


def test_what_libraries_say_is_json_too(monkeypatch, capfd):
    def chat(words):
        print("half a ", end="", file=sys.stderr)
        print("line", file=sys.stderr)
        log = logging.Logger("library")
        log.addHandler(logging.StreamHandler())
        log.warning("beware")
        return 0

    monkeypatch.setattr(app, "run", chat)
    with pytest.raises(SystemExit):
        cli.main(["mine", "--log-format", "json"])
    said = [entry["message"] for entry in records(capfd.readouterr().err)]
    assert said == ["half a line", "beware"]
    assert console.LOG_FORMAT not in os.environ


def test_quiet_keeps_warnings_and_results(inside, rows, tiny_bert, tmp_path):
    out = tmp_path / "mined.jsonl"
    words = ["mine", rows, out, "--embedder-name-or-path", tiny_bert, "--range", "1-3000", "-n", "30"]
    loud, quiet = inside(*words), inside(*words, "-q")
    assert quiet.stderr
    assert all(line.startswith("warning: ") for line in quiet.stderr.splitlines())
    assert set(quiet.stderr.splitlines()) < set(loud.stderr.splitlines())
    shown = inside("data", "stats", rows, "--quiet")
    assert "rows.jsonl" in shown.stdout
    assert shown.stderr == ""
    assert out.read_text().count("\n") == 80


def test_the_environment_does_what_flags_do(inside, rows, monkeypatch, tmp_path):
    monkeypatch.setenv(console.VERBOSITY, "verbose")
    monkeypatch.setenv(console.LOG_FORMAT, "json")
    said = [entry.get("message", "") for entry in records(inside("data", "stats", rows).stderr)]
    assert any(message.startswith("paths: ") and message.endswith("# flag") for message in said)
    assert any(message.startswith("bgectl data stats: ") for message in said)
    assert inside("data", "stats", rows, "-q", "--log-format", "text").stderr == ""


def test_verbose_tells_where_options_came_from_but_no_token(inside, rows, tiny_bert, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("range: 1-20\n")
    done = inside(
        "mine", rows, tmp_path / "o.jsonl", "--embedder-name-or-path", tiny_bert, "--config", config, "-v",
        "--token", "hf_secret",
    )  # fmt: skip
    assert f"range: 1-20  # {config}:1" in done.stderr
    assert "negative_number" not in done.stderr
    assert "Encoding queries: 80 texts in " in done.stderr
    assert "hf_secret" not in done.stderr


@pytest.mark.parametrize(("words", "environment", "said"), [
    (["-q", "-v"], {}, "--verbose and --quiet exclude each other"),
    (["--log-format", "xml"], {}, "--log-format: is not one of text, json (given: 'xml')"),
    ([], {console.LOG_FORMAT: "xml"}, "BGECTL_LOG_FORMAT: is not one of text, json (given: 'xml')"),
    ([], {console.VERBOSITY: "loud"}, "BGECTL_VERBOSITY: is not one of quiet, normal, verbose (given: 'loud')"),
])  # fmt: skip
def test_refused(inside, monkeypatch, words, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = inside("mine", "a", "b", "--embedder-name-or-path", "c", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")


def test_they_are_no_options_of_the_model(inside, rows):
    done = inside("data", "stats", rows, "--print-config", "-q", "--log-format", "json")
    assert "quiet" not in done.stdout
    assert "log_format" not in done.stdout


def test_flags_reach_processes_that_are_started(monkeypatch):
    """What `launch` starts in this one's place, and what a pipeline starts, sees them."""
    seen = {}

    def look(words):
        from bgectl.cli.bind import set_messages

        set_messages(verbose=True, quiet=None, log_format="json")
        seen.update({name: os.environ.get(name) for name in (console.LOG_FORMAT, console.VERBOSITY)})
        return 0

    monkeypatch.setattr(app, "run", look)
    with pytest.raises(SystemExit):
        cli.main([])
    assert seen == {console.LOG_FORMAT: "json", console.VERBOSITY: "verbose"}


def test_records_come_at_most_once_a_second(monkeypatch, capfd):
    monkeypatch.setenv(console.LOG_FORMAT, "json")
    with console.progress("Working", 1000, "things") as advance:
        for _ in range(1000):
            advance()
    assert [entry["done"] for entry in records(capfd.readouterr().err)] == [1000]
    monkeypatch.setattr(console, "SECONDS_TO_NEXT_RECORD", 0.0)
    with console.progress("Working", None, "things") as advance:
        advance(3)
        advance()
    entries = records(capfd.readouterr().err)
    assert [(entry["done"], entry["total"], entry["remaining"]) for entry in entries] == [
        (3, None, None), (4, None, None), (4, None, None),
    ]  # fmt: skip


def test_a_long_stage_says_a_line_now_and_then_without_a_terminal(monkeypatch, capfd):
    with console.progress("Working", 100, "things") as advance:
        advance(50)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(console, "SECONDS_TO_FIRST_LINE", 0.0)
    with console.progress("Working", 100, "things") as advance:
        advance(50)
        advance(10)
    assert capfd.readouterr().err.startswith("Working: 50 of 100 things (50%), ")
    monkeypatch.setattr(console, "SECONDS_TO_NEXT_LINE", 0.0)
    with console.progress("Working", 100, "things") as advance:
        advance(50)
        advance(10)
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_what_cannot_tell_how_far_it_is_shows_life(monkeypatch, capfd):
    monkeypatch.setattr(console, "SECONDS_TO_FIRST_LINE", 0.05)
    monkeypatch.setattr(console, "SECONDS_TO_NEXT_LINE", 0.05)
    with console.working("Training the index"):
        time.sleep(0.5)
    time.sleep(0.2)
    said = capfd.readouterr().err.splitlines()
    assert 2 <= len(said) <= 10
    assert all(line.startswith("Training the index: 0.") and line.endswith(" s so far") for line in said)
    monkeypatch.setenv(console.LOG_FORMAT, "json")
    with console.working("Training the index"):
        time.sleep(0.3)
    entry = records(capfd.readouterr().err)[0]
    assert (entry["task"], entry["done"], entry["total"], entry["remaining"]) == ("Training the index", 0, None, None)


def test_reading_large_files_has_progress(inside, rows, monkeypatch):
    from bgectl.data import pieces

    monkeypatch.setattr(pieces, "LONG_MEGABYTES", 0)
    for words, task in ((["data", "stats"], "counting"), (["data", "validate"], "checking")):
        found = records(inside(*words, rows, "--log-format", "json").stderr)
        assert [entry["task"] for entry in found if entry["level"] == "progress"] == [task]


def test_a_download_is_told_once(tmp_path, monkeypatch, capfd):
    from huggingface_hub import constants

    from bgectl.models.hub import Hub, tell_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    there = tmp_path / "models--me--mine"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("abc")
    (there / "snapshots" / "abc").mkdir(parents=True)
    for _ in range(2):
        tell_download("me/mine", Hub(cache_dir=tmp_path))
    assert capfd.readouterr().err == "me/mine: downloading from the hub\n"
    (there / "snapshots" / "abc" / "config.json").write_text("{}")
    tell_download.cache_clear()
    tell_download("me/mine", Hub(cache_dir=tmp_path))
    assert capfd.readouterr().err == ""


def test_the_rate_is_that_of_late_and_the_rest_follows_from_it(monkeypatch):
    from bgectl import meter

    clock = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: clock[0])
    counter = meter.Meter(1000, done=100)
    assert (counter.rate, counter.remaining) == (0, None)
    for second in range(1, 161):
        clock[0] = second
        counter.add(1 if second <= 100 else 10)
    assert counter.done == 800
    assert counter.rate == pytest.approx(10)
    assert counter.remaining == pytest.approx(20)
    counter.add(500)
    assert counter.remaining == 0
    assert [meter.duration(seconds) for seconds in (0.42, 65, 7230, 59.7)] == ["0.4 s", "1:05", "2:00:30", "1:00"]
