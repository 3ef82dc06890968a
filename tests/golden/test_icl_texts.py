"""Queries with examples equal those recorded from the reference, token for token."""

import json

import pytest
from recorded import GOLDEN
from test_base_texts import Scripted, collection_of, prompts_of
from transformers import AutoTokenizer

from bgectl.data.draw import SYMMETRIC_TEXTS, draw_group
from bgectl.data.icl import IclTexts, Wording
from bgectl.encode import tokenize
from bgectl.options.common import newlines

TEXT = json.loads((GOLDEN / "text" / "expected_text.json").read_text(encoding="utf-8"))
CASES = TEXT["icl_cases"]


class Counted(Scripted):
    """The draws with which the cases were recorded, and how many examples a query gets."""

    def __init__(self, count):
        self.count = count

    def choice(self, seq):
        return self.count if seq == range(6) else seq[0]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(GOLDEN / "text" / "tokenizer", padding_side="left")


def texts_of(case, tokenizer, unpack_to):
    """Queries and passages of a case as the model reads them."""
    options, draws = case["options"], Counted(case["n_examples_choice"])
    collection = collection_of(case, unpack_to)
    places = [(dataset, position) for dataset in collection.datasets for position in range(len(dataset))]
    groups = []
    for dataset, position in [places[row] for row in case["rows"]]:
        row = dataset.read(position)[1]
        groups.append(draw_group(
            row, dataset.group_size, prompts_of(options), draws, symmetric=row.type in SYMMETRIC_TEXTS
        ))  # fmt: skip
    icl = IclTexts(
        Wording(tokenizer, newlines(options.get("icl_suffix_str", r"\nResponse:"))),
        options["query_max_len"], options["passage_max_len"], options.get("example_query_max_len", 64),
        options.get("example_passage_max_len", 96), options.get("retrieval_use_examples", True),
    )  # fmt: skip
    passages = [icl.passage(text, group) for group in groups for text in group.passages]
    return icl.queries(groups, lambda _: draws), passages


@pytest.mark.parametrize("name", sorted(CASES))
def test_texts(name, tokenizer, tmp_path):
    queries, passages = texts_of(CASES[name], tokenizer, tmp_path)
    expected = CASES[name]["expected"]
    assert queries == expected["queries"]
    assert passages == expected["passages"]
    options = CASES[name]["options"]
    for ours, theirs, length in (
        (queries, expected["queries"], options["query_max_len"]),
        (passages, expected["passages"], options["passage_max_len"]),
    ):
        ids, _ = tokenize(tokenizer, ours, length)
        assert ids == tokenizer(theirs, truncation=True, max_length=length)["input_ids"]


@pytest.mark.parametrize("name", sorted(n for n, c in TEXT["collate_cases"].items() if c["source"][0] == "icl_cases"))
def test_tokens(name, tokenizer):
    case = TEXT["collate_cases"][name]
    source = CASES[case["source"][1]]["expected"]
    for kind in ("queries", "passages"):
        ids, _ = tokenize(tokenizer, source[kind], case[f"{'query' if kind == 'queries' else 'passage'}_max_len"])
        assert tokenizer.pad({"input_ids": ids})["input_ids"] == case["expected"][kind]["input_ids"]
