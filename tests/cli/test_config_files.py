"""YAML files: which are read, what they may hold, and that `--print-config` writes one."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.cli.bind import config_text
from bgectl.errors import UsageError
from bgectl.options import MODELS
from bgectl.options.resolve import resolve

MINE = {"input_file": "in", "output_file": "out", "embedder_name_or_path": "model"}


@pytest.fixture
def mine(tmp_path):
    """Resolve the options of `mine` from the text of a file, given as `--config` or as the project's."""

    def call(text, *, flags=None, project=None):
        config, own = tmp_path / "c.yaml", tmp_path / "bgectl.yaml"
        config.write_text(text, encoding="utf-8")
        if project is not None:
            own.write_text(project, encoding="utf-8")
        return resolve(MODELS["mine"](), "mine", {**MINE, **(flags or {})}, config, project=own)

    return call


def test_flag_over_config_over_project_over_default(mine):
    project = "mine: {seed: 1, negative_number: 1, range: 1-2}\ntrain: {base: {seed: 9}}\n"
    resolved = mine("seed: 2\nnegative_number: 2\n", flags={"seed": "3"}, project=project)
    options = resolved.options
    assert (options.seed, options.negative_number, options.range, options.search_batch_size) == (3, 2, "1-2", 256)
    sources = [resolved.sources[name] for name in ("seed", "negative_number", "range", "search_batch_size")]
    assert [source.rsplit("/")[-1] for source in sources] == ["flag", "c.yaml:2", "bgectl.yaml:1", "default"]


@pytest.mark.parametrize("text", ["seed: 7", "mine:\n  seed: 7", "mine: {seed: 7}\ntrain: {base: {seed: 1}}"])
def test_with_and_without_sections(mine, text):
    assert mine(text).options.seed == 7


@pytest.mark.parametrize("text", ["", "# nothing\n", "mine:\n", "train: {base: {seed: 1}}"])
def test_files_that_say_nothing(mine, text):
    assert mine(text).options.seed == 42


def test_nested_section(tmp_path):
    file = tmp_path / "bgectl.yaml"
    file.write_text("train:\n  base:\n    learning-rate: 1e-5\n    train-data: one.jsonl\n    max_steps: -1\n")
    flags = {"model_name_or_path": "model", "output_dir": "out"}
    options = resolve(MODELS["train base"](), "train base", flags, project=file).options
    assert (options.learning_rate, options.train_data, options.max_steps) == (1e-5, [Path("one.jsonl")], -1)


@pytest.mark.parametrize(("text", "name", "value"), [
    ("n: 3", "negative_number", 3),
    ("negative-number: 3", "negative_number", 3),
    ("range-for-sampling: 2-200", "range", "2-200"),
    ("use_gpu_for_searching: yes", "use_gpu_for_searching", True),
    ("devices: cpu", "devices", ["cpu"]),
    ("devices: [cuda:0, cuda:1]", "devices", ["cuda:0", "cuda:1"]),
    ("revision: 2024-01-31", "revision", "2024-01-31"),
    ("query_instruction_for_retrieval: ''", "query_instruction_for_retrieval", ""),
    ("revision:", "revision", None),
    ("\ufeffseed: 1", "seed", 1),
])  # fmt: skip
def test_values(mine, text, name, value):
    assert getattr(mine(text).options, name) == value


@pytest.mark.parametrize(("text", "said"), [
    ("a: 1\nsed: 3", "c.yaml:2: unknown key `sed`; did you mean `seed`?"),
    ("seed: 1\nseed: 2", "c.yaml:2:1: is not valid YAML: key `seed` stands twice"),
    ("n: 1\nnegative_number: 2", "c.yaml:2: `negative_number` is another name of a key that is given above"),
    ("mine: {}\nmin: {}", "c.yaml:2: unknown section `min`"),
    ("mine: {}\ntrain: {bas: {}}\nseed: 1", "c.yaml:3: unknown section `seed`"),
    ("mine: {n: x}", "c.yaml:1: `negative_number`: is not a whole number (given: 'x')"),
    ("seed: true", "c.yaml:1: `seed`: is not a number (given: true)"),
    ("revision: 1.5", "c.yaml:1: `revision`: is not text; put it in quotes (given: '1.5')"),
    ("seed:", "c.yaml:1: `seed`: has no value"),
    ("[1", "c.yaml:1:3: is not valid YAML"),
    ("- seed", "holds no mapping"),
    ("[a]: 1", "is not valid YAML"),
    ("a: \x01", "is not valid YAML"),
    ("seed: 1\nn: !!python/object:os.system x", "is not valid YAML"),
])  # fmt: skip
def test_what_is_wrong_with_a_file(mine, text, said):
    with pytest.raises(UsageError) as caught:
        mine(text)
    assert said in str(caught.value)


def test_problems_of_files_and_flags_come_together(mine):
    with pytest.raises(UsageError) as caught:
        mine("sed: 1\nn: 0", flags={"seed": "x"})
    said = str(caught.value)
    assert "unknown key `sed`" in said
    assert "`negative_number`: must be 1 or more" in said
    assert "--seed: is not a whole number" in said


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"revision: caf\xe9\n")
    for name, said in (("none.yaml", "No such file"), ("latin.yaml", "is not UTF-8"), ("", "directory")):
        with pytest.raises(UsageError, match=said):
            resolve(MODELS["mine"](), "mine", MINE, tmp_path / name, project=None)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paths = texts.filter(lambda text: text and "\0" not in text)
values = {
    "train base": st.fixed_dictionaries(
        {"model_name_or_path": texts, "output_dir": paths, "train_data": st.lists(paths, min_size=1, max_size=3)},
        optional={
            "query_instruction_for_retrieval": st.none() | texts, "run_name": texts, "report_to": st.lists(texts),
            "learning_rate": st.floats(1e-300, 1e300), "temperature": st.floats(1e-9, 9),
            "seed": st.integers(0, 2**32 - 1), "bf16": st.booleans(),
            "max_example_num_per_dataset": st.none() | st.integers(1),
        },
    ),
    "mine": st.fixed_dictionaries(
        {name: st.just(value) for name, value in MINE.items()},
        optional={"candidate_pool": st.none() | paths, "revision": texts, "devices": st.lists(texts)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", values)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_printed_options_read_back_the_same(tmp_path_factory, command, data):
    """Any text: newlines, quotes, `#`, `yes`, `1e5`, dates, emoji, control characters."""
    model = MODELS[command]()
    resolved = resolve(model, command, data.draw(values[command]), project=None)
    file = tmp_path_factory.getbasetemp() / "printed.yaml"
    file.write_text(config_text(command, resolved), encoding="utf-8", newline="")
    again = resolve(model, command, {}, file, project=None)
    assert again.options == resolved.options
    assert not set(again.sources.values()) & {"flag", "default"}


def test_print_config_of_the_program(bgectl, tmp_path):
    (tmp_path / "bgectl.yaml").write_text("mine: {seed: 5}\n")
    words = ["mine", "in", "out", "--embedder-name-or-path", "model", "-n", "3", "--token", "secret", "--print-config"]
    shown = bgectl(*words, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "seed: 5  # bgectl.yaml:1\n" in shown.stdout
    assert "negative_number: 3  # flag\n" in shown.stdout
    assert "search_batch_size: 256  # default\n" in shown.stdout
    assert "secret" not in shown.stdout
    (tmp_path / "bgectl.yaml").unlink()
    (tmp_path / "printed.yaml").write_text(shown.stdout)
    again = bgectl("mine", "--config", "printed.yaml", "--print-config", cwd=tmp_path)
    assert [line.split("  #")[0] for line in again.stdout.splitlines() if "token:" not in line] == [
        line.split("  #")[0] for line in shown.stdout.splitlines() if "token:" not in line
    ]


def test_print_config_without_what_is_required(bgectl, tmp_path):
    done = bgectl("train", "base", "--print-config", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --model-name-or-path is required" in done.stderr
