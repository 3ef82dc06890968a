"""What a pipeline remembers of its stages."""

import json
import os

import pytest

from bgectl.options.run import RunOptions
from bgectl.pipeline.plan import stages_of
from bgectl.pipeline.state import Digests, State, read_state


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Training on a model of the hub, not downloaded yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    options = RunOptions(stages=["train-base"], data=["rows.jsonl"], model="someone/model")
    return stages_of(options, None)[0]


def download(folder, commit):
    refs = folder / "hub" / "models--someone--model" / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(commit)


def test_a_training_that_was_stopped_is_the_same_though_its_model_was_downloaded_since(stage, tmp_path):
    """Else it would begin anew, and what it had done would be deleted."""
    state = State(tmp_path)
    assert not state.start(stage)
    download(tmp_path, "a" * 40)
    assert read_state(tmp_path).start(stage)
    download(tmp_path, "b" * 40)
    assert not read_state(tmp_path).start(stage), "another commit is another model"


def test_what_changes_makes_a_stage_run(stage, tmp_path):
    state = State(tmp_path)
    assert state.why(stage) == "was not run yet"
    state.start(stage)
    assert state.why(stage) == "was not finished"
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").write_text("w")
    download(tmp_path, "a" * 40)
    state.done(stage, 1.0)
    state = read_state(tmp_path)
    assert state.why(stage) is None
    download(tmp_path, "b" * 40)
    assert state.why(stage) == "someone/model changed"
    download(tmp_path, "a" * 40)
    (tmp_path / "rows.jsonl").write_text("{} \n")
    assert state.why(stage) == "rows.jsonl changed"


def test_an_option_that_is_new_in_a_release_changes_nothing_at_its_default(stage, tmp_path):
    state = State(tmp_path)
    state.start(stage)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").write_text("w")
    state.done(stage, 1.0)
    del state.stages["train base"]["options"]["temperature"]
    assert state.why(stage) is None
    state.stages["train base"]["options"]["temperature"] = 0.05
    assert state.why(stage) == "temperature changed"


def test_logs_and_checkpoints_are_no_part_of_a_model(stage, tmp_path):
    state = State(tmp_path)
    state.start(stage)
    model = tmp_path / "run" / "model"
    (model / "checkpoint-3").mkdir(parents=True)
    (model / "model.safetensors").write_text("w")
    state.done(stage, 1.0)
    (model / "checkpoint-3" / "optimizer.pt").write_text("o")
    (model / "log.jsonl").write_text("{}")
    state.refuse_others(stage)
    assert state.why(stage) is None


def test_files_are_read_again_only_when_they_changed(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("one")
    digests = Digests({})
    first = digests.of(path)
    monkeypatch.setattr("bgectl.pipeline.state.file_digest", lambda _: pytest.fail("read again"))
    assert digests.of(path) == first
    monkeypatch.undo()
    stamp = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert digests.of(path) != first
    assert digests.of(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": 3}', json.dumps({"stages": {}, "files": {}})])
def test_a_state_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path).stages == {}
