"""`bgectl relabel`: false negatives are dropped or become positives, scores stay with their texts, the rest is kept."""

import json

import pytest

QUERY = "Who hunts at night?"
OWL, OWLS, BREAD, YEAST = (
    "The owl hunts at night.", "Owls hunt at night, by hearing.", "Bread needs an hour to rise.", "Yeast makes gas.",
)  # fmt: skip


def rows():
    return [
        {"id": 1, "query": QUERY, "pos": [OWL], "neg": [BREAD, OWLS, YEAST], "mined_pos_scores": [1.0],
         "mined_neg_scores": [0.5, 0.6, 0.7]},
        {"id": 2, "query": QUERY, "pos": [YEAST], "neg": [OWL, OWL.upper(), OWLS], "type": "normal"},
        {"id": 3, "query": "What makes dough rise?", "pos": ["Yeast makes the dough rise."], "neg": [OWL]},
        {"id": 4, "query": "What makes dough rise?", "pos": ["Yeast makes the dough rise."]},
    ]  # fmt: skip


@pytest.fixture
def relabel(inside, write_rows, minilm, tmp_path):
    """Relabel with the real small model as the teacher."""

    def call(*words, data=None, teacher=("--reranker", minilm)):
        done = inside("relabel", write_rows(rows() if data is None else data), tmp_path / "out.jsonl", *teacher, *words)
        found = []
        if done.returncode == 0:
            found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        return done, found

    return call


def test_drop(relabel):
    done, found = relabel()
    assert done.returncode == 0, done.stderr
    assert found[0]["neg"][0] == BREAD
    assert YEAST in found[0]["neg"]
    assert [row["neg"] for row in found[1:]] == [[], [OWL], []]
    assert found[1]["pos"] == [YEAST]
    assert [row["id"] for row in found] == [1, 2, 3, 4]
    assert all(len(row["pos"]) == len(row["pos_scores"]) for row in found)
    assert all(len(row["neg"]) == len(row["neg_scores"]) for row in found)
    assert all(max(row["neg_scores"], default=-1) <= max(row["pos_scores"]) for row in found), (
        "a false negative is left"
    )
    assert "1 rows have no negative left" in done.stderr


def test_promote(relabel):
    """Each text once, though copies of it stand among the negatives, with the score that the teacher gave it."""
    done, found = relabel("--action", "promote")
    assert done.returncode == 0, done.stderr
    assert sorted(found[1]["pos"]) == sorted([YEAST, OWL, OWLS])
    assert found[1]["pos"][0] == YEAST
    assert found[1]["neg"] == []
    _, dropped = relabel()
    assert found[1]["pos_scores"][0] == dropped[1]["pos_scores"][0]
    assert min(found[1]["pos_scores"][1:]) > found[1]["pos_scores"][0]
    assert found[2] == dropped[2], "a row without a false negative is changed"


def test_what_mining_wrote_goes_with_its_text(relabel):
    _, found = relabel("--margin", -2)
    assert found[0]["neg"] == []
    assert found[0]["mined_neg_scores"] == []
    _, found = relabel("--margin", -2, "--action", "promote")
    assert found[0]["pos"] == [OWL, BREAD, OWLS, YEAST]
    assert found[0]["mined_pos_scores"] == [1.0, 0.5, 0.6, 0.7]


def test_wrong_positives(relabel):
    done, found = relabel("--min-positive-score", 0.2)
    assert [row["id"] for row in found] == [1, 3, 4], "a positive that the teacher calls irrelevant is kept"
    assert "1 rows had no other positive and were left out" in done.stderr
    assert "dropped 1 positives" in done.stderr


def test_the_rows_own_scores(relabel, tmp_path):
    """Nothing is loaded, and the manifest goes on to name the teacher."""
    data = [{"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "pos_scores": [1, 3], "neg_scores": [2, 4.5]}]
    done, found = relabel(data=data, teacher=())
    assert done.returncode == 0, done.stderr
    assert found == [{"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1.0, 3.0], "neg_scores": [2.0]}]
    (tmp_path / "rows.jsonl.manifest.json").write_text('{"teacher": "x", "files": "f", "scale": 2.0}')
    done, found = relabel("--compare-to", "least", "--action", "promote", data=data, teacher=())
    assert found[0]["pos"] == ["a", "b", "c", "d"]
    assert found[0]["pos_scores"] == [1, 3, 2, 4.5]
    told = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert (told["teacher"], told["scale"], told["relabel"]["action"]) == ("x", 2.0, "promote")


def test_rows_without_scores_need_a_teacher(relabel, tmp_path):
    done, _ = relabel(teacher=())
    assert done.returncode == 1
    assert "rows.jsonl: row 1 has no score for each of its texts" in done.stderr
    assert "--reranker" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_options_of_a_teacher_that_is_not_there(relabel):
    done, _ = relabel("--scale", 2, teacher=())
    assert (done.returncode, "--scale says nothing without --reranker" in done.stderr) == (2, True), done.stderr


def test_the_page(relabel, tmp_path):
    data = rows()
    data[1]["neg"] = ["Owls <b>hunt</b> at night & by hearing."]
    done, _ = relabel("--report", tmp_path / "page.html", data=data)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "Likely false negatives" in page
    assert "&lt;b&gt;hunt&lt;/b&gt; at night &amp; by hearing." in page
    assert page.count("<svg") >= 1
    assert "<b>hunt" not in page
