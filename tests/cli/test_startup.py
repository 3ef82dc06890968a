"""What must not be loaded to answer quickly."""

import os
import subprocess
import sys

import pytest

from bgectl.commands import COMMANDS, GROUPS

HEAVY = {
    "torch", "transformers", "faiss", "datasets", "numpy", "scipy", "yaml", "rich", "matplotlib", "accelerate", "peft",
    "sentence_transformers", "ir_measures",
}  # fmt: skip


def loaded(words, environment=None, code=0):
    """The top-level packages that Python reports as imported by a run of the program."""
    command = [sys.executable, "-X", "importtime", "-m", "bgectl", *words]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert done.stdout
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("words", ["", *GROUPS])
def test_help_of_groups_loads_no_models(words):
    assert not loaded([*words.split(), "--help"]) & (HEAVY | {"pydantic"})


@pytest.mark.parametrize("words", COMMANDS)
def test_help_of_commands_loads_nothing_heavy(words):
    packages = loaded([*words.split(), "--help"])
    assert "pydantic" in packages, "the check sees what is imported"
    assert not packages & HEAVY


@pytest.mark.parametrize("typed", ["bgectl tr", "bgectl train base --kd-loss-type "])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_loads_nothing_heavy(shell, typed):
    environment = {
        "_BGECTL_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    packages = loaded([], environment)
    assert not packages & (HEAVY | {"typer"})
    assert ("pydantic" in packages) == ("base" in typed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_values_loads_nothing_heavy(shell, tmp_path):
    (tmp_path / "models--BAAI--bge-m3").mkdir()
    typed = "bgectl mine --embedder-name-or-path BAAI"
    environment = {
        "_BGECTL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": typed, "HF_HUB_CACHE": str(tmp_path),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": typed, "COMP_CWORD": "3",
    }  # fmt: skip
    assert not loaded([], environment) & (HEAVY | {"typer", "huggingface_hub"})


def test_checking_data_loads_no_torch_even_to_count_tokens(tiny_bert, write_rows):
    rows = write_rows([{"query": "ka", "pos": ["lo"], "neg": ["mi"]}])
    packages = loaded(["data", "validate", str(rows), "--tokenizer", tiny_bert, "--format", "json"])
    assert "tokenizers" in packages, "the tokens are counted"
    assert not packages & {"torch", "transformers"}


def test_a_mistyped_flag_loads_nothing_heavy_but_the_message(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "bgectl", "mine", "--sed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    packages = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not packages & (HEAVY - {"rich"})
