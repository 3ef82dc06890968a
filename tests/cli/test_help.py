"""`--help` of every command, as text, and the docs page."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bgectl import __version__
from bgectl.cli.bind import help_page
from bgectl.commands import COMMANDS, GROUPS
from bgectl.options import MODELS
from bgectl.options.describe import describe

ROOT = Path(__file__).parents[2]


def squeeze(text):
    return " ".join(text.split())


def options(command):
    return [option for rows in describe(MODELS[command]()).values() for option in rows]


def test_every_command_has_a_model_and_a_group():
    assert set(MODELS) == set(COMMANDS)
    assert {command.split()[0] for command in COMMANDS if " " in command} == set(GROUPS)


def test_program_lists_every_command(bgectl):
    shown = bgectl("--help")
    assert shown.returncode == 0
    for command, summary in COMMANDS.items():
        assert f"  {command} " in shown.stdout
        assert summary in squeeze(shown.stdout)
    assert bgectl("-h").stdout == shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_all_there_is_about_every_option(bgectl, command):
    shown = bgectl(*command.split(), "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"Usage: bgectl {command} [OPTIONS]")
    text = squeeze(shown.stdout)
    for option in options(command):
        assert option.text, f"{option.name} has no docstring"
        said = " ".join(f"{option.spelled} {option.value} {option.text} {option.notes}".split())
        assert said in text, option.name
    assert "\x1b" not in shown.stdout
    assert "--print-config" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_keeps_to_the_width(monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = help_page(command, MODELS[command](), "What it does.", "Example: nothing").splitlines()
    terms = {f"  {option.spelled} {option.value}".rstrip() for option in options(command)}
    assert [line for line in lines if len(line) > width and line not in terms] == []
    assert max(map(len, lines)) > width / 2, "the width is used"


def test_required_options_and_defaults_are_shown(bgectl):
    text = squeeze(bgectl("mine", "--help").stdout)
    assert "Negatives for each row. [>= 1; default: 15]" in text
    assert "[INPUT_FILE] [OUTPUT_FILE]" in text
    assert "--embedder-name-or-path TEXT Name on the hub or folder of the embedder. [required]" in text


def test_colour_only_where_it_is_wanted(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    coloured = help_page("mine", MODELS["mine"](), "Mine.")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = help_page("mine", MODELS["mine"](), "Mine.")
    assert "\x1b[" in coloured
    assert "\x1b[" not in plain


def test_version(bgectl):
    assert bgectl("--version").stdout.strip() == f"bgectl {__version__}"


def test_no_words_show_the_help_and_fail(bgectl):
    done = bgectl()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == bgectl("--help").stdout


def test_docs_page_is_what_the_models_say():
    script = ROOT / "docs" / "make_cli_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_docs_page_names_every_option():
    page = runpy.run_path(str(ROOT / "docs" / "make_cli_reference.py"))["page"]()
    for command in COMMANDS:
        assert f"## bgectl {command}\n" in page
        for option in options(command):
            assert f"| `{option.flag}` |" in page
            assert option.text.replace("|", "\\|") in page


def example(command, shown):
    """The words of the example at the end of a help page."""
    found = squeeze(shown).rpartition("Example: ")[2]
    assert found.startswith(f"bgectl {command}"), found
    return shlex.split(found.partition(" > ")[0].partition(" | ")[0])[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_can_be_typed(bgectl, inside, tmp_path, monkeypatch, command):
    words = example(command, bgectl(*command.split(), "--help").stdout)
    monkeypatch.chdir(tmp_path)
    done = inside(*words, "--print-config")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"# bgectl {command}\n")
    given = [word for word in words[len(command.split()) :] if not word.startswith("-")]
    assert "# flag" in done.stdout or not given


def test_exit_codes_and_environment_are_told(bgectl):
    text = squeeze(bgectl("--help").stdout)
    for word in ("Exit codes", "130, 143", "BGECTL_LOG_FORMAT", "BGECTL_VERBOSITY", "HF_HUB_OFFLINE", "NO_COLOR"):
        assert word in text
    assert "Exit codes" not in bgectl("train", "--help").stdout
