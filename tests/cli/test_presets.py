"""`--preset`: where its values stand among the others, what the shipped ones hold, and the commands about them."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from seed_lines import SEED

from bgectl.cli.complete import candidates
from bgectl.errors import UsageError
from bgectl.options import MODELS
from bgectl.options.common import PresetOptions
from bgectl.options.mine import MineOptions
from bgectl.options.project import project_text
from bgectl.options.resolve import resolve
from bgectl.presets import WHEN, names, read_preset, sections

NEEDED = {
    "mine": {"input_file": "in", "output_file": "out", "embedder_name_or_path": "model"},
    "score": {"input_file": "in", "output_file": "out", "reranker_name_or_path": "model"},
    "train": {"model_name_or_path": "model", "train_data": ["x"], "output_dir": "out"},
    "eval": {"model_name_or_path": ["model"], "eval_data": "x"},
}
WITH_PRESETS = ["mine", "score", "train base", "train m3", "train llm", "train icl", "eval"]
CASES = [(name, command) for name in names() for command in sections(read_preset(name))]


def resolved(command, *presets, project=None, config=None, **flags):
    needed = {name: value for name, value in NEEDED[command.split()[0]].items() if "model" not in str(value)}
    return resolve(MODELS[command](), command, {**needed, "preset": list(presets), **flags}, config, project=project)


def test_the_presets_that_were_promised():
    assert set(names()) == {
        "bge-small-en", "bge-base-en", "bge-large-en", "bge-m3", "bge-multilingual-gemma2", "bge-en-icl", "e5",
        "minilm", "positive-aware",
    }  # fmt: skip
    assert [name for name in MODELS if issubclass(MODELS[name](), PresetOptions)] == WITH_PRESETS


@pytest.mark.parametrize(("name", "command"), CASES)
def test_every_value_of_every_preset_is_taken(name, command):
    """As it is written, and under its condition."""
    flags = {} if name != "positive-aware" else {"embedder_name_or_path": "model"}
    found = resolved(command, name, **flags)
    values = found.options.model_dump(mode="json")
    section = dict(sections(read_preset(name))[command])
    conditions = section.pop(WHEN, {})
    assert section
    for key, value in section.items():
        assert values[key] == ("dense" if command == "train m3" and key == "negatives_cross_device" else value), key
        assert found.sources[key] == f"preset {name}"
    for option, more in conditions.items():
        conditional = resolved(command, name, **flags, **{option: "other"}).options.model_dump(mode="json")
        assert {key: conditional[key] for key in more} == more


OF_THE_MACHINE = {
    "cache_dir", "train_data", "cache_path", "output_dir", "overwrite_output_dir", "fp16", "deepspeed", "logging_steps",
    "save_steps", "dataloader_drop_last", "devices", "input_file", "output_file", "use_gpu_for_searching", "gpus",
    "embedder_name_or_path",
}  # fmt: skip
"""What the published lines say of a machine, a place or a toy example; the presets do not, and say so."""


@pytest.mark.parametrize(("name", "command"), [
    ("bge-large-en", "train base"), ("bge-m3", "train m3"), ("bge-multilingual-gemma2", "train llm"),
    ("bge-en-icl", "train icl"), ("bge-base-en", "mine"), ("bge-m3", "mine"), ("bge-m3", "score"),
])  # fmt: skip
def test_presets_are_the_published_lines(name, command, inside):
    """But for what depends on the machine, and the batch of 2 of encoders."""
    own = OF_THE_MACHINE | ({"per_device_train_batch_size"} if command in ("train base", "train m3") else set())
    words = shlex.split(SEED[command].replace("\\\n", " "))
    line = inside(*command.split(), *words[2 if words[0] == "python" else 5 :], "--print-config")
    assert line.returncode == 0, line.stderr
    published = {
        key: value for key, value in yaml.safe_load(line.stdout).items()
        if key not in own and f"\n{key}: " in line.stdout
        and line.stdout.partition(f"\n{key}: ")[2].split("\n")[0].endswith("# flag")
    }  # fmt: skip
    assert len(published) >= (2 if command in ("mine", "score") else 12)
    preset = resolved(command, name).options.model_dump(mode="json")
    assert {key: preset[key] for key in published} == published


@pytest.mark.parametrize("name", names())
def test_a_preset_says_what_it_is_for_and_where_its_values_come_from(name):
    content = read_preset(name)
    first, blank, *rest = content["about"].splitlines()
    assert first.endswith(".")
    assert (blank, len(rest) >= 3) == ("", True)
    text = str(content)
    assert "fp16': True" not in text, "a CPU would refuse it"
    precise = {command for command, section in sections(content).items() if section.get("bf16")}
    assert precise <= {"train llm", "train icl"}


def test_layers(tmp_path):
    project, config = tmp_path / "bgectl.yaml", tmp_path / "c.yaml"
    project.write_text("train: {m3: {preset: bge-m3, learning_rate: 2e-6, temperature: 0.5, seed: 1}}\n")
    config.write_text("temperature: 0.6\nseed: 2\n")
    needed = {"train_data": ["x"], "output_dir": "out"}
    found = resolve(MODELS["train m3"](), "train m3", {**needed, "seed": "3"}, config, project=project)
    options = found.options
    assert (options.learning_rate, options.temperature, options.seed) == (2e-6, 0.6, 3)
    assert (options.preset, options.use_self_distill) == (["bge-m3"], True)
    assert options.model_name_or_path == "BAAI/bge-m3"
    shown = {
        name: found.sources[name].rsplit("/")[-1] for name in ("preset", "use_self_distill", "temperature", "fsdp")
    }
    assert shown == {
        "preset": "bgectl.yaml:1", "use_self_distill": "preset bge-m3", "temperature": "c.yaml:1", "fsdp": "default",
    }  # fmt: skip


def test_the_highest_layer_says_which_presets(tmp_path):
    project, config = tmp_path / "bgectl.yaml", tmp_path / "c.yaml"
    project.write_text("train: {base: {preset: e5}}\n")
    config.write_text("preset: [minilm]\n")
    off = resolved("train base", project=project, model_name_or_path="model")
    assert off.options.temperature == 0.02, "a flag without names turns it off"
    needed = {"train_data": ["x"], "output_dir": "out"}
    model = MODELS["train base"]()
    assert resolve(model, "train base", needed, project=project).options.temperature == 0.01
    assert resolve(model, "train base", needed, config, project=project).options.temperature == 0.05
    flags = {**needed, "preset": ["bge-large-en"]}
    assert resolve(model, "train base", flags, config, project=project).options.learning_rate == 1e-5


def test_later_presets_win():
    both = [resolved("train base", *order).options for order in (("e5", "minilm"), ("minilm", "e5"))]
    assert [options.temperature for options in both] == [0.05, 0.01]
    assert both[0].query_instruction_for_retrieval == "query: ", "what the later one says nothing of stays"
    mined = resolved("mine", "bge-m3", "positive-aware").options
    assert (mined.range, mined.positive_percent, mined.fill) == ("2-200", 0.95, "deeper")


@pytest.mark.parametrize(("given", "expected"), [
    ({}, (0.95, None, None, "deeper")),
    ({"cross_encoder": "x"}, (0.95, None, None, "none")),
    ({"cross_encoder": "x", "fill": "random"}, (0.95, None, None, "random")),
    ({"relative_margin": "0.1"}, (None, 0.1, None, "deeper")),
    ({"absolute_margin": "0"}, (None, None, 0, "deeper")),
    ({"positive_percent": "0.9"}, (0.9, None, None, "deeper")),
])  # fmt: skip
def test_positive_aware_beside_what_the_user_says(given, expected):
    options = resolved("mine", "positive-aware", embedder_name_or_path="model", **given).options
    assert isinstance(options, MineOptions)
    assert (options.positive_percent, options.relative_margin, options.absolute_margin, options.fill) == expected


@pytest.mark.parametrize(("given", "expected"), [
    ({"fp16": True}, {"fp16": True, "bf16": False}),
    ({"fp16": False}, {"fp16": False, "bf16": True}),
    ({"warmup_steps": "5"}, {"warmup_steps": 5, "warmup_ratio": None}),
    ({"use_lora": False}, {"use_lora": False, "lora_rank": 64, "save_merged_lora_model": False}),
    ({"from_peft": "a"}, {"from_peft": "a", "lora_rank": 64, "save_merged_lora_model": True}),
    ({"lora_rank": "8"}, {"lora_rank": 8, "lora_alpha": 64}),
])  # fmt: skip
def test_values_that_exclude_the_users_fall_away(given, expected):
    options = resolved("train llm", "bge-multilingual-gemma2", **given).options
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(("command", "preset", "said"), [
    ("train m3", "bge-m4", "--preset: no preset `bge-m4`\nhint: did you mean `bge-m3`? there are bge-base-en, "),
    ("train m3", "BGE_M3", "did you mean `bge-m3`?"),
    ("train m3", "zzz", "--preset: no preset `zzz`\nhint: there are bge-base-en, "),
    ("train m3", "../presets/e5", "no preset `../presets/e5`"),
    ("train base", "bge-m3", "preset `bge-m3` has nothing for `train base`\nhint: it has mine, score, train m3, eval"),
])  # fmt: skip
def test_presets_that_are_not_there(command, preset, said):
    with pytest.raises(UsageError) as caught:
        resolved(command, preset)
    assert said in str(caught.value)


def test_an_unknown_preset_in_a_file_is_named_with_its_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("seed: 1\npreset: bge-m4\n")
    with pytest.raises(UsageError, match=r"c\.yaml:2: `preset`: no preset `bge-m4`"):
        resolve(MODELS["train m3"](), "train m3", {}, config, project=None)


def test_on_the_command_line_a_file_may_follow(options_of):
    mined = options_of("mine", "--preset", "bge-m3", "positive-aware", "in.jsonl", "out.jsonl")
    assert (mined.preset, mined.input_file) == (["bge-m3", "positive-aware"], Path("in.jsonl"))
    judged = options_of("eval", "--preset", "bge-m3", "one", "two", "--data", "x")
    assert (judged.model_name_or_path, judged.score) == (["one", "two"], ["dense", "hybrid"])


def test_print_config_names_the_preset_and_reads_back(bgectl, tmp_path):
    words = ["train", "m3", "--preset", "bge-m3", "--train-data", "x", "--output-dir", "out", "--print-config"]
    shown = bgectl(*words, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "kd_loss_type: m3_kd_loss  # preset bge-m3\n" in shown.stdout
    assert "preset: [bge-m3]  # flag\n" in shown.stdout
    (tmp_path / "c.yaml").write_text(shown.stdout)
    again = bgectl("train", "m3", "--config", "c.yaml", "--print-config", cwd=tmp_path)
    assert yaml.safe_load(again.stdout) == yaml.safe_load(shown.stdout)


def test_an_unknown_preset_ends_the_program_with_2(bgectl, tmp_path):
    done = bgectl("mine", "--preset", "bge-m4", "in", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --preset: no preset `bge-m4`\nhint: did you mean `bge-m3`?" in done.stderr


def test_presets_lists_and_prints(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    listed = inside("presets")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in names())
    assert "mine, score, train m3, eval" in listed.stdout
    one = inside("presets", "bge-m3")
    assert yaml.safe_load(one.stdout) == read_preset("bge-m3")
    assert one.stdout.startswith("about: |\n")
    data = json.loads(inside("presets", "--format", "json").stdout)
    assert list(data) == list(names())
    assert data["e5"]["train"]["base"]["temperature"] == 0.01
    missing = inside("presets", "bge")
    assert missing.returncode == 2
    assert "no preset `bge`" in missing.stderr


def test_schema_knows_the_names(inside):
    schema = json.loads(inside("schema", "train", "m3").stdout)
    assert schema["properties"]["preset"]["items"]["enum"] == list(names())


def test_completion():
    assert [word for word, _ in candidates(["train", "m3", "--preset"], "bge-m")] == [
        "bge-m3",
        "bge-multilingual-gemma2",
    ]
    assert [word for word, _ in candidates(["mine", "--preset", "bge-m3"], "pos")] == ["positive-aware"]
    assert [word for word, _ in candidates(["mine"], "--preset=mi")] == ["--preset=minilm"]
    assert [word for word, _ in candidates(["presets"], "e")] == ["e5"]


def test_init_writes_the_values_of_a_preset(bgectl, tmp_path):
    done = bgectl("init", "--preset", "bge-m3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((tmp_path / "bgectl.yaml").read_text())
    assert list(written["train"]) == ["m3"]
    assert written["train"]["m3"]["self_distill_start_step"] == 0
    assert written["score"]["reranker_max_length"] == 1024
    assert written["eval"]["model_name_or_path"] == ["BAAI/bge-m3", written["train"]["m3"]["output_dir"]]
    shown = bgectl("train", "m3", "--print-config", cwd=tmp_path)
    values = yaml.safe_load(shown.stdout)
    assert (values["model_name_or_path"], values["num_train_epochs"]) == ("BAAI/bge-m3", 2)


def test_init_takes_another_model_with_a_preset():
    written = yaml.safe_load(project_text("own/model", ["e5", "positive-aware"]))
    assert written["mine"]["embedder_name_or_path"] == written["train"]["base"]["model_name_or_path"] == "own/model"
    assert written["mine"]["positive_percent"] == 0.95
    assert written["train"]["base"]["passage_instruction_for_retrieval"] == "passage: "
    assert written["eval"]["model_name_or_path"] == ["own/model", "finetuned"]


@pytest.mark.parametrize("name", names())
def test_init_writes_files_that_every_command_reads(tmp_path, name):
    file = tmp_path / "bgectl.yaml"
    file.write_text(project_text(None, [name]))
    written = yaml.safe_load(file.read_text())
    for command in ("mine", "score", "eval", *(f"train {kind}" for kind in written["train"])):
        resolve(MODELS[command](), command, {}, project=file)
