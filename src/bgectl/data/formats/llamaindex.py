"""LlamaIndex's pairs for fine-tuning (EmbeddingQAFinetuneDataset): one JSON object of queries, corpus and which is
relevant to which. Reading and writing hold the whole file in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from bgectl import jsonl
from bgectl.data.formats.source import Placed, Raw, Source
from bgectl.data.formats.target import Ids, Target
from bgectl.errors import DataError, UsageError

PARTS = ("queries", "corpus", "relevant_docs")
SHAPE = '{"queries": {id: text}, "corpus": {id: text}, "relevant_docs": {id: [id]}}'


def read(source: Source) -> Iterator[Placed]:
    """Rows without negatives, in the order of the queries.

    Raises:
        DataError: The file is not JSON, or lacks one of PARTS.
    """
    path = source.path
    if str(path) != "-" and not path.is_file():
        raise UsageError("no such file", where=str(path))
    with jsonl.open_binary(path) as stream:
        data = stream.read()
    try:
        found = orjson.loads(data.removeprefix(jsonl.UTF8_BOM))
    except orjson.JSONDecodeError as problem:
        raise DataError(f"not valid JSON: {problem.msg}", where=f"{path}:{problem.lineno}:{problem.colno}") from problem
    del data
    for name in PARTS:
        if not isinstance(found, dict) or not isinstance(found.get(name), dict):
            raise DataError(f"holds no object `{name}`", where=str(path), hint=f"the format is {SHAPE}")
    queries, corpus, relevant = (found[name] for name in PARTS)
    left_out = 0
    for key, query in queries.items():
        documents = relevant.get(key) or []
        if not documents:
            left_out += 1
            continue
        where = f"{path}: query `{key}`"
        unknown = [document for document in documents if not isinstance(corpus.get(document), str)]
        if not isinstance(documents, list) or unknown:
            shown = unknown[0] if unknown else documents
            source.problems.add(where, f"its document `{shown}` is not in the corpus")
            continue
        yield where, {"query": query, "pos": [corpus[document] for document in documents], "neg": [], "query_id": key}
    if left_out:
        source.notes.counts["queries left out, since they have no relevant document"] += left_out


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """One object. Negatives are in the corpus, where they count as passages to be told apart from the relevant ones."""
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    relevant: dict[str, list[str]] = {}
    of_query, of_passage = Ids("q"), Ids("p")
    for row in rows:
        target.lose({**row, "neg": None}, {"query", "pos", "query_id"})
        if row.get("neg"):
            target.notes.lost["whose negative a text of `neg` is"] += 1
        key, new = of_query.of(row["query"], row.get("query_id"))
        queries[key] = row["query"]
        found = {of_passage.of(text)[0]: text for text in row["pos"]}
        corpus |= found
        corpus |= {of_passage.of(text)[0]: text for text in row.get("neg") or ()}
        relevant[key] = list(dict.fromkeys([*([] if new else relevant[key]), *found]))
    whole: dict[str, Any] = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "mode": "text"}
    with jsonl.replace_file(target.path) as stream:
        stream.write(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")
    return [target.path]
