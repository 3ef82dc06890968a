"""Completion: in the shells that are here, and by what their scripts ask in any case."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bgectl.cli.complete import candidates

SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture
def shell(tmp_path):
    """Run a script in a shell that is not interactive, with `bgectl` on its path."""
    program = tmp_path / "bin" / "bgectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bgectl "$@"\n')
    program.chmod(0o755)

    def call(name, script, cwd=tmp_path):
        if shutil.which(name) is None:
            pytest.skip(f"no {name} here")
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(
            [name, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    return call


def in_bash(typed):
    """A script that does what bash does at the key, and prints the words that fit."""
    words = " ".join(f"'{word}'" for word in typed)
    return f"""
        eval "$(_BGECTL_COMPLETE=source_bash bgectl)"
        complete -p bgectl | grep -q _bgectl_completion || exit 3
        COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
        _bgectl_completion bgectl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """


@pytest.mark.parametrize(("typed", "expected"), [
    (["bgectl", "trai"], ["train"]),
    (["bgectl", "data", ""], ["validate", "stats", "convert", "split"]),
    (["bgectl", "train", "base", "--kd-loss-type", ""], ["kl_div", "m3_kd_loss"]),
    (["bgectl", "train", "base", "--kd_loss_type", "m"], ["m3_kd_loss"]),
    (["bgectl", "score", "--dtype", "=", "fl"], ["float32", "float16"]),
    (["bgectl", "train", "base", "--same"], ["--same-dataset-within-batch"]),
    (["bgectl", "mine", ""], [""]),
    (["bgectl", "nothing", ""], [""]),
])  # fmt: skip
def test_bash(shell, typed, expected):
    assert shell("bash", in_bash(typed)) == expected


def test_fish(shell):
    script = "bgectl --show-completion fish | source; complete -C 'bgectl train base --kd-loss-type '"
    assert shell("fish", script) == ["kl_div", "m3_kd_loss"]
    script = "bgectl --show-completion fish | source; complete -C 'bgectl trai'"
    assert shell("fish", script) == ["train\tFine-tune an embedder."]


def test_zsh(shell):
    """The script's function is called as zsh calls it, with `_arguments` and `compdef` replaced by printing."""
    script = """
        compdef() { print -r -- "compdef $*" }
        _arguments() { print -r -- "$1" }
        eval "$(bgectl --show-completion zsh)"
        words=(bgectl train base --kd-loss-type ''); CURRENT=5
        _bgectl_completion
    """
    first, *rest = shell("zsh", script)
    assert first == "compdef _bgectl_completion bgectl"
    assert rest == ['*: :(("kl_div" "m3_kd_loss"))']


def ask(bgectl, name, typed, **more):
    environment = {"_BGECTL_COMPLETE": f"complete_{name}", "_TYPER_COMPLETE_ARGS": typed, **more}
    return bgectl(env={**environment, "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)})


@pytest.mark.parametrize("name", SHELLS)
def test_what_the_scripts_ask(bgectl, name):
    answers = [ask(bgectl, name, typed, _TYPER_COMPLETE_FISH_ACTION="get-args").stdout
               for typed in ("bgectl sc", "bgectl eval --format ")]  # fmt: skip
    assert "score" in answers[0]
    assert "schema" in answers[0]
    assert "table" in answers[1]
    assert "json" in answers[1]


def test_files_are_left_to_the_shell(bgectl):
    assert ask(bgectl, "zsh", "bgectl mine ").stdout == "_files\n"
    assert ask(bgectl, "fish", "bgectl mine ", _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 1
    assert ask(bgectl, "fish", "bgectl m", _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 0


@pytest.mark.parametrize("name", SHELLS)
def test_scripts_without_a_terminal(bgectl, name):
    shown = bgectl("--show-completion", name)
    assert shown.returncode == 0
    assert f"_BGECTL_COMPLETE=complete_{name}" in shown.stdout
    assert bgectl(env={"_BGECTL_COMPLETE": f"source_{name}"}).stdout == shown.stdout
    assert bgectl("--show-completion", env={"SHELL": f"/usr/bin/{name}"}).stdout == shown.stdout


def test_install_writes_below_home(bgectl, tmp_path):
    done = bgectl("--install-completion", "fish", env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "complete_fish" in (Path(tmp_path) / ".config/fish/completions/bgectl.fish").read_text()


def test_unknown_shell(bgectl):
    done = bgectl("--show-completion", "csh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: one of bash, zsh, fish" in done.stderr


def test_given_flags_are_not_offered_again_but_lists_are():
    offered = [word for word, _ in candidates(["train", "base", "--seed", "1", "--train-data", "a"], "--")]
    assert "--seed" not in offered
    assert "--train-data" in offered
    assert "--no-normalize-embeddings" in offered
    assert "--help" in offered


def test_quotes_in_help_do_not_end_the_zsh_word(bgectl):
    """`the model's files` and `#` in a docstring would break the line that zsh evaluates."""
    shown = ask(bgectl, "zsh", "bgectl train base --").stdout
    assert shown.count("'") == 2
    assert shown.count('"') % 2 == 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with data, trained folders and a hub cache."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("models--BAAI--bge-m3", "models--intfloat--e5-small", "datasets--BeIR--scifact"):
        (tmp_path / ".cache/huggingface/hub" / model).mkdir(parents=True)
    for path in ("out/config.json", "adapter/adapter_config.json", "deep/er/config.json", "rows.jsonl",
                 "more.jsonl.zst", "notes.txt", "two words.json", "judged/qrels/test.tsv",
                 "judged/qrels/dev.tsv.gz"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    work = tmp_path
    monkeypatch.chdir(work)
    return work


def words_of(line):
    *done, incomplete = line.split(" ")
    return [word for word, _ in candidates(done, incomplete)]


HUB = ["BAAI/bge-m3", "intfloat/e5-small"]


@pytest.mark.parametrize(("line", "expected"), [
    ("train base --model-name-or-path ", [*HUB, "adapter", "out", "deep/", "judged/"]),
    ("mine --embedder_name_or_path BA", HUB[:1]),
    ("mine --embedder-name-or-path=int", ["--embedder-name-or-path=intfloat/e5-small"]),
    ("score --reranker BAAI/", HUB[:1]),
    ("mine --cross-encoder o", ["out"]),
    ("data stats rows.jsonl --tokenizer deep/", ["deep/er"]),
    ("merge-lora a", ["adapter"]),
    ("merge-lora out --base i", HUB[1:]),
    ("eval ", [*HUB, "adapter", "out", "deep/", "judged/"]),
    ("eval out ", [*HUB, "adapter", "out", "deep/", "judged/"]),
    ("mine ", ["more.jsonl.zst", "rows.jsonl", "two words.json", "adapter/", "deep/", "judged/", "out/"]),
    ("mine r", ["rows.jsonl"]), ("mine ~/r", ["~/rows.jsonl"]), ("mine ./m", ["./more.jsonl.zst"]),
    ("mine --seed 3 r", ["rows.jsonl"]), ("mine --no-dedupe n", []), ("mine n", []),
    ("mine rows.jsonl ", []),
    ("data validate rows.jsonl m", ["more.jsonl.zst"]),
    ("train base -t rows.jsonl m", ["more.jsonl.zst"]),
    ("eval out --data judged --split ", ["dev", "test"]),
    ("train base --eval-data judged --eval-split d", ["dev"]),
    ("mine --devices c", ["cpu"]), ("mine --devices cpu a", ["auto"]),
    ("mine --output o", []), ("mine --query-instruction-for-retrieval ", []), ("eval -- o", []),
])  # fmt: skip
def test_values(home, monkeypatch, line, expected):
    from bgectl.cli import values

    monkeypatch.setattr(values, "devices", lambda: ["auto", "cpu"])
    assert words_of(line) == expected


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_where_the_hub_keeps_models(tmp_path, monkeypatch, variable):
    from bgectl.cli.values import hub_models

    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    (tmp_path / below / "models--me--mine").mkdir(parents=True)
    assert hub_models({}, {variable: str(tmp_path)}) == ["me/mine"]
    assert hub_models({"cache_dir": [str(tmp_path / below)]}, {}) == ["me/mine"]
    huggingface_hub = pytest.importorskip("huggingface_hub")
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment = {**clean, variable: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert Path(done.stdout.strip()) == tmp_path / below, huggingface_hub.__version__


@pytest.mark.parametrize(("typed", "expected"), [
    (["bgectl", "mine", "tw"], ["two\\ words.json"]),
    (["bgectl", "mine", "rows.jsonl", "x.jsonl", "--embedder-name-or-path", "BA"], ["BAAI/bge-m3"]),
    (["bgectl", "mine", "notes"], [""]),
    (["bgectl", "mine", "--devices", "cp"], ["cpu"]),
    (["bgectl", "mine", "--devices", "cpu", ":", ""], [""]),
])  # fmt: skip
def test_values_in_bash(shell, home, typed, expected):
    assert shell("bash", in_bash(typed), cwd=home) == expected


def test_bash_at_a_terminal(home, tmp_path):
    """A person at a real bash presses the key."""
    pytest.importorskip("pyte")
    from terminals import Terminal

    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    program = tmp_path / "bin" / "bgectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bgectl "$@"\n')
    program.chmod(0o755)
    start = tmp_path / "start"
    start.write_text('PS1="$ "\neval "$(bgectl --show-completion bash)"\n')
    run = f"import os; os.execvp('bash', ['bash', '--noprofile', '--rcfile', {str(start)!r}, '-i'])"
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    terminal = Terminal(program=("-c", run), cwd=home, env=environment, columns=160)
    terminal.wait_for("$")
    # What is typed before the shell has set up its line is lost.
    terminal.wait_seconds(0.5)
    for typed, expected in (
        ("bgectl mine ro\t", "$ bgectl mine rows.jsonl"), ("x.js\b\b\b\bnot\t", "notes.txt"),
        ("--embedder-name-or-path BA\t", "BAAI/bge-m3"), ("--config no\t", "--config notes.txt"),
        ("--report de\t", "--report deep/"), ("er\t", "--report deep/er/"),
    ):  # fmt: skip
        terminal.type(typed)
        terminal.wait_for(expected)
    terminal.kill(signal.SIGKILL)
    terminal.end()
