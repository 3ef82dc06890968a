"""Completion: in the shells that are here, and by what their scripts ask in any case."""

import os
import shutil
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
    (["bgectl", "tr"], ["train"]),
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
    script = "bgectl --show-completion fish | source; complete -C 'bgectl tr'"
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
