"""`bgectl init` and the file it writes."""

import re

import pytest
import yaml

from bgectl.options import MODELS
from bgectl.options.describe import describe
from bgectl.options.project import project_text, project_values
from bgectl.options.resolve import resolve

COMMANDS = sorted(project_values("model"))


@pytest.fixture
def project(bgectl, tmp_path):
    """A folder with the file that `bgectl init` writes."""
    done = bgectl("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return tmp_path


def test_every_command_with_options_for_a_project_has_a_section():
    assert set(COMMANDS) == set(MODELS) - {"init", "presets", "schema", "translate", "doctor"}


@pytest.mark.parametrize("words", [
    ["data", "validate", "train.jsonl"],
    ["data", "stats"],
    ["mine", "--range", "2-200", "-n", "15"],
    ["score"],
    ["train", "base"],
    ["eval"],
])  # fmt: skip
def test_commands_run_as_typed_beside_it(bgectl, project, words):
    shown = bgectl(*words, "--print-config", cwd=project)
    assert shown.returncode == 0, shown.stderr
    resolved = yaml.safe_load(shown.stdout)
    if "mine" in words:
        assert (resolved["range"], resolved["negative_number"]) == ("2-200", 15)
        assert resolved["embedder_name_or_path"] == "BAAI/bge-small-en-v1.5"


def test_every_option_stands_in_it_with_its_help():
    text = project_text("model")
    plain = " ".join(text.replace("#", " ").split())
    for command in COMMANDS:
        for rows in describe(MODELS[command]()).values():
            for option in rows:
                assert " ".join(option.text.replace("#", " ").split()) in plain, option.name
                assert re.search(rf"^ *#?{option.name}: ", text, re.MULTILINE), option.name


@pytest.mark.parametrize("command", COMMANDS)
def test_commented_options_are_the_defaults(tmp_path, command):
    """With every # taken away the file still resolves, and to the same options."""
    as_written, uncommented = tmp_path / "a.yaml", tmp_path / "b.yaml"
    as_written.write_text(project_text("model"))
    uncommented.write_text(re.sub(r"^( *)#(?=[a-z_0-9]+: )", r"\1", project_text("model"), flags=re.MULTILINE))
    one, other = (resolve(MODELS[command](), command, {}, project=file) for file in (as_written, uncommented))
    assert one.options == other.options
    assert "default" not in other.sources.values()


def test_an_existing_file_stays(bgectl, project):
    file = project / "bgectl.yaml"
    file.write_text("mine: [broken")
    done = bgectl("init", cwd=project)
    assert done.returncode == 2
    assert "error: bgectl.yaml: exists already" in done.stderr
    assert file.read_text() == "mine: [broken"
    assert bgectl("init", "--force", cwd=project).returncode == 0
    assert yaml.safe_load(file.read_text())["mine"]["input_file"] == "train.jsonl"
    assert [path.name for path in project.iterdir()] == ["bgectl.yaml"]


def test_path_and_model(bgectl, tmp_path):
    (tmp_path / "folder").mkdir()
    assert bgectl("init", "folder", "--model", "intfloat/e5-small", cwd=tmp_path).returncode == 0
    written = yaml.safe_load((tmp_path / "folder" / "bgectl.yaml").read_text())
    assert written["train"]["base"]["model_name_or_path"] == "intfloat/e5-small"
    assert bgectl("init", "other.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "other.yaml").is_file()
