"""The commands of docs/how-to/convert.md run as typed beside the files shown there."""

import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "convert.md").read_text(encoding="utf-8")
FILES = re.findall(r"Let\s+`([\w.-]+)`\s+be\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ bgectl (.*)$", PAGE, re.MULTILINE)


def test_the_page_has_commands_and_files():
    assert len(COMMANDS) == PAGE.count("\n$ ") >= 13
    assert len(FILES) == PAGE.count("Let\n`") + PAGE.count("Let `") == 6


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A folder with the files of the page, and the working directory."""
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run_as_typed(inside, shown):
    for command in COMMANDS:
        done = inside(*shlex.split(command))
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for name in (
        "split/train/train.jsonl", "split/held-out/train.jsonl", "judged-split/eval/qrels/test.tsv",
        "by-length/train_len-30-inf.jsonl", "judged/corpus.jsonl", "train.jsonl.manifest.json",
    ):  # fmt: skip
        assert (shown / name).is_file(), name
