"""`bgectl run`: what has changed is run again, and nothing else; after any stop it ends as an unbroken run does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from forked import leavings

STAGES = ["validate", "mine", "score", "relabel", "train-base", "eval"]


@pytest.fixture
def project(tmp_path, toy_rows, write_rows, tiny_bert, judge, monkeypatch):
    """A folder with a pipeline of all usual stages on toy rows; returns a function that changes its options."""
    monkeypatch.chdir(tmp_path)
    write_rows(toy_rows(), "train.jsonl")
    write_rows(toy_rows(12), "held-out.jsonl")
    content = {
        "run": {"data": ["train.jsonl"], "model": tiny_bert, "stages": list(STAGES)},
        "mine": {"range": "0-20", "negative_number": 3, "devices": ["cpu"], "dtype": "float32"},
        "score": {"reranker_name_or_path": judge, "devices": ["cpu"], "dtype": "float32"},
        "relabel": {"margin": 5.0},
        "train": {"base": {
            "train_group_size": 2, "num_train_epochs": 1, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 2,
            "per_device_train_batch_size": 4, "device": "cpu", "dataloader_num_workers": 0,
        }},
        "eval": {"eval_data": "held-out.jsonl", "devices": ["cpu"], "dtype": "float32"},
    }  # fmt: skip

    def change(**sections):
        for name, values in sections.items():
            section = content["train"]["base"] if name == "base" else content.setdefault(name, {})
            section.update(values)
        (tmp_path / "bgectl.yaml").write_text(yaml.safe_dump(content))

    change()
    return change


def ran(done):
    """The stages that were run, by what was said."""
    return [line.split(":")[0] for line in done.stderr.splitlines() if ": running" in line]


def outputs(folder):
    """The bytes of what the pipeline made, as far as they do not tell of times."""
    names = ("mined.jsonl", "scored.jsonl", "relabelled.jsonl", "model/model.safetensors")
    found = {name: (folder / name).read_bytes() for name in names}
    told = json.loads((folder / "eval.json").read_text())
    for model in told["models"]:
        del model["seconds"]
    return found | {"eval": told}


@pytest.mark.slow
def test_only_what_depends_on_a_change_is_run_again(project, bgectl, tmp_path):
    first = bgectl("run")
    assert first.returncode == 0, first.stderr
    assert ran(first) == STAGES
    assert "nDCG@10" in first.stdout, "what evaluation prints is the result"
    for name in ("mined.jsonl", "scored.jsonl", "relabelled.jsonl", "eval.json"):
        told = json.loads((tmp_path / "run" / f"{name}.manifest.json").read_text())
        assert told["inputs"]
        assert told["all_options"]
    assert json.loads((tmp_path / "run" / "model" / "bgectl-manifest.json").read_text())["seed"] == 42
    made = outputs(tmp_path / "run")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}

    started = time.monotonic()
    second = bgectl("run")
    assert time.monotonic() - started < 20, "a second or so; the bound is for busy machines"
    assert (second.returncode, ran(second)) == (0, [])
    assert "nothing to do" in second.stderr
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in stamps if stamps[path] != now[path]} <= {"state.json"}

    project(base={"learning_rate": 2e-3})
    assert "learning_rate changed" in bgectl("run", "--dry-run").stdout
    third = bgectl("run")
    assert ran(third) == ["train-base", "eval"], third.stderr
    assert outputs(tmp_path / "run")["model/model.safetensors"] != made["model/model.safetensors"]

    project(mine={"negative_number": 2})
    assert ran(bgectl("run"))[:3] == ["mine", "score", "relabel"]

    # Where it runs decides nothing.
    project(mine={"batch_tokens": 100}, base={"logging_steps": 2})
    assert ran(bgectl("run")) == []

    # The rows themselves.
    rows = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(rows[:-1]))
    assert ran(bgectl("run")) == STAGES

    (tmp_path / "run" / "scored.jsonl").unlink()
    assert ran(bgectl("run")) == ["score"], "the same bytes again, so nothing after it"

    assert ran(bgectl("run", "--only", "relabel")) == ["relabel"]
    assert ran(bgectl("run", "--from", "train-base")) == ["train-base", "eval"]


@pytest.mark.slow
def test_what_was_changed_by_hand_is_not_written_over(project, bgectl, tmp_path):
    project(run={"stages": ["mine", "train-base"]})
    assert bgectl("run").returncode == 0
    mined = tmp_path / "run" / "mined.jsonl"
    own = "".join(mined.read_text().splitlines(keepends=True)[:-3])
    mined.write_text(own)
    refused = bgectl("run")
    assert refused.returncode == 2
    assert "mined.jsonl: was changed after `mine` had written it" in refused.stderr
    assert "--from with the next stage" in refused.stderr
    gone_on = bgectl("run", "--from", "train-base")
    assert (gone_on.returncode, ran(gone_on)) == (0, ["train-base"])
    assert mined.read_text() == own
    assert bgectl("run").returncode == 2, "and what --from took as it is stays safe"
    assert mined.read_text() == own
    mined.unlink()
    assert ran(bgectl("run")) == ["mine", "train-base"]


def test_what_others_made_is_not_written_over(project, inside, tmp_path):
    """Also not by the second attempt, which would know the stage as begun."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "bgectl-run.json").write_text('{"made": ["model.safetensors"]}')
    (model / "model.safetensors").write_text("somebody's")
    (tmp_path / "run" / "mined.jsonl").write_text("somebody's\n")
    for command in (["run"], ["run"]):
        done = inside(*command, "--stages", "mine", "train-base")
        assert done.returncode == 2
        assert "run/mined.jsonl: is there, and `mine` of this pipeline did not make it" in done.stderr
    assert "stops" in inside("run", "--dry-run", "--stages", "mine", "train-base").stdout
    for _ in range(2):
        done = inside("run", "--stages", "train-base")
        assert done.returncode == 2
        assert "run/model: is there" in done.stderr
    assert (model / "model.safetensors").read_text() == "somebody's"
    assert (tmp_path / "run" / "mined.jsonl").read_text() == "somebody's\n"


def test_errors_of_stages_are_told_as_their_own(project, bgectl, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"query": "a", "pos": "b"}\n')
    done = bgectl("run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: validate: " in done.stderr
    assert "stages/validate.log" in done.stderr
    assert "wrong-type" in done.stdout, "what validation found is shown"


@pytest.mark.parametrize(("sections", "said"), [
    ({"run": {"stages": ["mine", "polish"]}}, "no stage `polish`"),
    ({"run": {"stages": ["mine", "mine"]}}, "a stage stands twice"),
    ({"mine": {"range": "9-2"}, "score": {"reranker_name_or_path": 3}}, "mine: "),
    ({"mine": {"output_file": "run/x.jsonl"}, "score": {"output_file": "run/x.jsonl"}}, "both write run/x.jsonl"),
    ({"mine": {"output_file": "-"}}, "not to a pipe"),
])  # fmt: skip
def test_a_pipeline_that_cannot_be(project, inside, sections, said):
    project(**sections)
    done = inside("run")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not Path("run").exists()
    if "score" in sections and "range" in sections["mine"]:
        assert "score: " in done.stderr, "all stages' problems at once"


def test_which_stages_are_meant(project, inside, tmp_path):
    content = yaml.safe_load((tmp_path / "bgectl.yaml").read_text())
    del content["run"]["stages"]
    content["data"] = {"validate": {}}
    (tmp_path / "bgectl.yaml").write_text(yaml.safe_dump(content))
    shown = inside("run", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines() if " runs " in line] == STAGES
    content["train"]["m3"] = {}
    (tmp_path / "bgectl.yaml").write_text(yaml.safe_dump(content))
    unclear = inside("run", "--dry-run")
    assert unclear.returncode == 2
    assert "train base, train m3, and it is not said which" in unclear.stderr
    assert inside("run", "--from", "merge", "--stages", "mine").returncode == 2
    (tmp_path / "bgectl.yaml").unlink()
    nothing = inside("run")
    assert nothing.returncode == 2
    assert "bgectl init" in nothing.stderr


def test_another_run_at_work_is_not_disturbed(project, inside, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = inside("run")
    assert done.returncode == 2
    assert "another `bgectl run` is at work here" in done.stderr


def start(folder, environment=None):
    """`bgectl run` in a process; returns it and a function that waits for a stage to be running."""
    log = (folder / "said").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "bgectl", "run"], cwd=folder, stdout=log, stderr=log,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip

    def wait_for(stage):
        deadline = time.monotonic() + 120
        while f"{stage}: running" not in (folder / "said").read_text():
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    return process, wait_for


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_an_unbroken_run(project, bgectl, tmp_path):
    assert bgectl("run").returncode == 0
    wanted = outputs(tmp_path / "run")
    draw = random.Random(3)
    project(run={"output_dir": "broken"})
    for stage in ("validate", "mine", "score", "train-base", "train-base", "eval"):
        process, wait_for = start(tmp_path)
        wait_for(stage)
        time.sleep(draw.uniform(0, 6))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, "a stage outlived its pipeline"
    done = bgectl("run")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "broken") == {
        **wanted, "eval": json.loads(json.dumps(wanted["eval"]).replace("run/model", "broken/model")),
    }  # fmt: skip
    assert leavings(tmp_path / "broken") == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_stage_in_order(project, bgectl, tmp_path, number, code):
    project(run={"stages": ["mine", "train-base"]}, base={"num_train_epochs": 400, "save_steps": 0})
    process, wait_for = start(tmp_path)
    wait_for("train-base")
    while not (tmp_path / "run" / "model" / "log.jsonl").exists():
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert not [child for child in children if child.is_running()]
    said = (tmp_path / "said").read_text()
    assert "train-base: interrupted after step" in said
    assert "`bgectl run` goes on from there" in said
    assert list((tmp_path / "run" / "model").glob("checkpoint-*"))
    project(base={"num_train_epochs": 400, "save_steps": 0})
    again, _ = start(tmp_path)
    deadline = time.monotonic() + 60
    while "going on from" not in (tmp_path / "said").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again.send_signal(signal.SIGKILL)
    again.wait()
