"""`bgectl eval`: measure models on judged data and compare each with the first."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from bgectl import console, jsonl
from bgectl.evaluate.compare import COMPARED, Comparison, compare
from bgectl.evaluate.judged import Judged, load_judged
from bgectl.evaluate.measure import evaluate_embedder, evaluate_heads
from bgectl.evaluate.result import Result, describe, labels
from bgectl.manifest import described, write_manifest
from bgectl.models.files import model_facts
from bgectl.models.hub import Hub, check_model_name
from bgectl.options.evaluate import EvalOptions


def run(options: EvalOptions) -> None:
    """Load the data, measure each model, compare, print.

    Raises:
        UsageError: The data or an output cannot be what the options say.
        DataError: The data cannot be used.
        RunError: A model cannot be loaded or run.
    """
    for model in options.model_name_or_path:
        check_model_name(model)
    output = jsonl.replace_file(options.output_file) if options.output_file else nullcontext()
    if options.report is not None:
        jsonl.check_target(options.report)
    with output as stream:
        judged = load_judged(options.eval_data, options.split)
        console.info(describe(judged))
        results = [result for model in options.model_name_or_path for result in measure_model(model, judged, options)]
        comparisons = compare_with_first(results)
        report = {"data": counts(judged, options), **as_json(results, comparisons)}
        if stream is not None:
            stream.write(jsonl.dump(with_queries(report, results)) + b"\n")
    if options.output_file is not None:
        note(options)
    if options.report is not None:
        from bgectl.evaluate.page import write_page

        write_page(options.report, judged, results, comparisons)
        console.info(f"report: {options.report}")
    if options.format == "json":
        print(jsonl.dump(report).decode())
    else:
        show(judged, results, comparisons)


def note(options: EvalOptions) -> None:
    """Write the manifest of the JSON."""
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    inputs = described({"eval_data": options.eval_data, "examples_for_task": options.examples_for_task})
    models = {"models": model_facts(options.model_name_or_path, hub)}
    write_manifest(cast("Path", options.output_file), "eval", inputs, models, options)


def measure_model(model: str, judged: Judged, options: EvalOptions) -> list[Result]:
    """Load one model, measure it by each kind of score, and give its memory back."""
    from bgectl.encode import load_embedder

    embedder = load_embedder(
        model,
        pooling=options.pooling_method,
        normalize=options.normalize_embeddings,
        query_instruction=options.query_instruction_for_retrieval,
        query_format=options.query_instruction_format,
        passage_instruction=options.passage_instruction_for_retrieval,
        passage_format=options.passage_instruction_format,
        query_max_length=options.query_max_len,
        passage_max_length=options.passage_max_len,
        devices=options.devices,
        dtype=options.dtype,
        use_fp16=options.use_fp16,
        use_bf16=options.use_bf16,
        batch_tokens=options.batch_tokens,
        heads=options.score != ["dense"],
        kind=options.embedder_model_class,
        examples=options.examples_for_task,
        examples_format=options.examples_instruction_format,
        hub=Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code),
    )
    console.info(f"{model}: {embedder.description}")
    start = time.perf_counter()
    try:
        if options.score == ["dense"]:
            measured = {"dense": evaluate_embedder(judged, embedder, options.cutoffs)}
        else:
            kinds = list(dict.fromkeys(options.score))
            measured = evaluate_heads(judged, embedder, kinds, options.cutoffs, options.weights)
    finally:
        embedder.close()
    if embedder.cut:
        console.info(f"{model}: {embedder.cut:,} texts were longer than the maximum length and were cut")
    seconds = time.perf_counter() - start
    return [Result(model, kind, measures, embedder.description, seconds) for kind, measures in measured.items()]


def compare_with_first(results: list[Result]) -> list[tuple[Result, Result, Comparison]]:
    """Every model with the first by the same kind of score, and the first's own kinds with its first, in each measure
    of COMPARED: the baseline, what is compared with it, and how they differ.
    """
    first = results[: len({result.score for result in results})]
    of_kind = {result.score: result for result in first}
    pairs = [(first[0], result) for result in first[1:]]
    pairs += [(of_kind[result.score], result) for result in results[len(first) :]]
    return [(base, other, compare(base.measures, other.measures, name)) for base, other in pairs for name in COMPARED]


def counts(judged: Judged, options: EvalOptions) -> dict[str, Any]:
    """What the JSON says of the data."""
    return {
        "path": str(options.eval_data),
        "split": options.split,
        "queries": len(judged.queries),
        "passages": len(judged.passages),
        "relevant": judged.judgments,
        "left_out": judged.left_out,
    }


def as_json(results: list[Result], comparisons: list[tuple[Result, Result, Comparison]]) -> dict[str, Any]:
    """Models and comparisons as JSON objects."""
    return {
        "models": [
            {
                "model": result.model,
                "score": result.score,
                "measures": result.measures.means,
                "description": result.description,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
        "comparisons": [
            {
                "model": result.model,
                "score": result.score,
                "baseline": base.model,
                "baseline_score": base.score,
                "measure": found.measure,
                "difference": found.difference,
                "interval": [found.low, found.high],
                "p_value": found.p_value,
                "wins": found.wins,
                "ties": found.ties,
                "losses": found.losses,
            }
            for base, result, found in comparisons
        ],
    }


def with_queries(report: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """The report with each model's measures of each query, in the order of `query_ids`."""
    models = [
        entry | {"per_query": {name: values.tolist() for name, values in result.measures.values.items()}}
        for entry, result in zip(report["models"], results, strict=True)
    ]
    return report | {"query_ids": results[0].measures.query_ids, "models": models}


def show(judged: Judged, results: list[Result], comparisons: list[tuple[Result, Result, Comparison]]) -> None:
    """The tables on stdout."""
    measures = list(results[0].measures.values)
    named = {id(result): name for result, name in zip(results, labels(results), strict=True)}

    def label(result: Result) -> str:
        return named[id(result)]

    rows = [
        [label(result), *(f"{value:.4f}" for value in result.measures.means.values()), f"{result.seconds:.1f}"]
        for result in results
    ]
    console.table(judged.name, ["model", *measures, "seconds"], rows, on_stdout=True)
    if not comparisons:
        return
    bases = list(dict.fromkeys(label(base) for base, _, _ in comparisons))
    rows = [
        [
            label(result),
            *([label(base)] if len(bases) > 1 else []),
            found.measure,
            f"{found.difference:+.4f}",
            f"{found.low:+.4f}, {found.high:+.4f}",
            f"{found.p_value:.4f}",
            *(str(count) for count in (found.wins, found.ties, found.losses)),
        ]
        for base, result, found in comparisons
    ]
    columns = ["model", *(["from"] if len(bases) > 1 else []), "measure"]
    columns += ["change", "95% interval", "p", "wins", "ties", "losses"]
    title = "Change" if len(bases) > 1 else f"Change from {bases[0]}"
    console.table(title, columns, rows, on_stdout=True)
