"""Training texts, tokens and dataset sizes equal those recorded from the reference, or its mended form (SPEC §§1-3)."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bgectl.data.datasets import build_datasets
from bgectl.data.draw import SYMMETRIC_TEXTS, draw_group
from bgectl.data.prompts import Prompts
from bgectl.encode import tokenize
from bgectl.options.common import two_places

GOLDEN = Path(os.environ.get("BGECTL_GOLDEN_TRAINING", Path(__file__).parent / "data" / "training")) / "text"
TEXT = json.loads((GOLDEN / "expected_text.json").read_text(encoding="utf-8"))
ITEMS = {name: case for name, case in TEXT["item_cases"].items() if "upstream_error" not in case["expected"]}

MENDED = {
    "flat.prompt_ignored_without_instr",
    "flat.prompt_none_after_concat",
    "same.no_instruction_gives_None",
    "same.prompt_none_after_concat",
    "same.group_size_col_ignored_when_any_type",
}
"""Cases named for a defect: the reference's queries are wrong there, or its group size."""


class Scripted:
    """The draws with which the cases were recorded."""

    def random(self):
        return 0.0

    def choice(self, seq):
        return seq[0]

    def sample(self, population, k):
        return list(population)[:k]

    def shuffle(self, x):
        x.reverse()


def prompts_of(options):
    return Prompts(
        options.get("query_instruction_for_retrieval"),
        two_places(options.get("query_instruction_format", "{}{}")),
        options.get("passage_instruction_for_retrieval"),
        two_places(options.get("passage_instruction_format", "{}{}")),
    )


def collection_of(case, unpack_to, batch_size=4):
    options = case.get("options", {})
    return build_datasets(
        [GOLDEN / "data" / path for path in case["paths"]],
        group_size=options.get("train_group_size", 4),
        batch_size=batch_size,
        seed=case.get("seed", 42),
        unpack_to=unpack_to,
        same_dataset=case.get("mode", "same_dataset") == "same_dataset",
        small_threshold=options.get("small_threshold", 0),
        drop_threshold=options.get("drop_threshold", 0),
        most_rows=options.get("max_example_num_per_dataset"),
    )


def groups_of(case, unpack_to):
    """The rows and the groups of a case, in its order."""
    collection = collection_of(case, unpack_to)
    places = [(dataset, position) for dataset in collection.datasets for position in range(len(dataset))]
    same = case["mode"] == "same_dataset"
    for dataset, position in [places[row] for row in case.get("rows") or range(len(places))]:
        row = dataset.read(position)[1]
        yield row, draw_group(
            row, dataset.group_size, prompts_of(case["options"]), Scripted(),
            shuffle_ratio=case["options"].get("shuffle_ratio", 0.0), symmetric=same and row.type in SYMMETRIC_TEXTS,
        )  # fmt: skip


def expected_of(case):
    """(queries, passages, teacher scores) of a case, whichever of the two forms it was recorded in."""
    expected = case["expected"]
    if "items" not in expected:
        return expected["queries"], expected["passages"], expected["teacher_scores"]
    items = expected["items"]
    scores = [score for item in items for score in item["teacher_scores"] or []]
    return [i["query"] for i in items], [text for i in items for text in i["passages"]], scores


@pytest.mark.parametrize("name", sorted(set(ITEMS) - MENDED))
def test_texts(name, tmp_path):
    rows, groups = zip(*groups_of(ITEMS[name], tmp_path), strict=True)
    queries, passages, scores = expected_of(ITEMS[name])
    if ITEMS[name]["mode"] == "flat" and not ITEMS[name]["options"].get("query_instruction_for_retrieval"):
        # Mended: the reference ignores a row's prompt where the option is not set.
        queries = [(row.prompt or "") + query for row, query in zip(rows, queries, strict=True)]
    assert [group.query for group in groups] == queries
    assert [text for group in groups for text in group.passages] == passages
    if ITEMS[name]["options"].get("knowledge_distillation") and scores:
        assert [score for group in groups for score in group.scores] == pytest.approx(scores)


@pytest.mark.parametrize("name", sorted(set(ITEMS) & MENDED))
def test_mended_queries(name, tmp_path):
    """A row's prompt counts always, the option serves the rows without, and no `None` gets into a text."""
    case = ITEMS[name]
    prompts = prompts_of(case["options"])
    seen = list(groups_of(case, tmp_path))
    for row, group in seen:
        instruction = row.prompt or prompts.query_instruction
        template = prompts.query_format
        assert group.query == (template.format(instruction, row.query) if instruction else row.query)
    if name != "same.group_size_col_ignored_when_any_type":
        assert [text for _, group in seen for text in group.passages] == expected_of(case)[1]


def test_group_size_column_counts_beside_types(tmp_path):
    name = "same.group_size_col_ignored_when_any_type"
    if name not in ITEMS:
        pytest.skip("the set has no such case")
    for row, group in groups_of(ITEMS[name], tmp_path):
        if row.train_group_size is not None:
            assert len(group.passages) == row.train_group_size


MENDED_FLAGS = {"cls.trailing_slash", "cls.file_in_flagged_dir"}
MENDED_MERGE = "mix.merge"


@pytest.mark.parametrize(
    "name", sorted(n for n, c in TEXT["plan_cases"].items() if "upstream_error" not in c["expected"])
)
def test_datasets(name, tmp_path):
    case = TEXT["plan_cases"][name]
    expected = case["expected"]
    collection = collection_of(case, tmp_path, batch_size=case["default_batch_size"])
    if name == MENDED_MERGE:  # small files of two types: the reference merges them and stops on an assertion
        assert sum(len(dataset) for dataset in collection.datasets) == sum(expected["dataset_sizes"])
        assert len({dataset.type for dataset in collection.datasets}) == len(collection.datasets) > 1
        return
    assert [len(dataset) for dataset in collection.datasets] == expected["dataset_sizes"]
    assert [dataset.batch_size for dataset in collection.datasets] == expected["per_rank_batch_size"]
    flags = [name in MENDED_FLAGS] * len(collection.datasets) if name in MENDED_FLAGS else expected["no_in_batch_neg"]
    assert [dataset.own_negatives_only for dataset in collection.datasets] == flags


def test_batch_size_never_reaches_zero(tmp_path):
    """The reference halves a batch of one symmetric row to none and stops."""
    collection = collection_of(TEXT["plan_cases"]["all.bs1"], tmp_path, batch_size=1)
    assert {dataset.batch_size for dataset in collection.datasets} == {1}


COLLATED = {name: case for name, case in TEXT["collate_cases"].items() if case["source"][0] == "item_cases"}


@pytest.mark.parametrize("name", sorted(COLLATED))
def test_tokens(name):
    case = COLLATED[name]
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer", padding_side=case["padding_side"])
    queries, passages, _ = expected_of(ITEMS[case["source"][1]])
    for texts, length, expected in (
        (queries, case["query_max_len"], case["expected"]["queries"]),
        (passages, case["passage_max_len"], case["expected"]["passages"]),
    ):
        ids, _ = tokenize(tokenizer, texts, length)
        size = case["sub_batch_size"] if case["sub_batch_size"] > 0 else len(ids)
        pieces = [
            tokenizer.pad({"input_ids": ids[i : i + size]}, pad_to_multiple_of=case["pad_to_multiple_of"])
            for i in range(0, len(ids), size)
        ]
        recorded = expected if isinstance(expected, list) else [expected]
        for piece, record in zip(pieces, recorded, strict=True):
            assert piece["input_ids"] == record["input_ids"]
            assert piece["attention_mask"] == record["attention_mask"]
