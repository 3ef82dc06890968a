"""`bgectl train base`, from options to a folder."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed

from bgectl import __version__, console
from bgectl.data.datasets import Collection, build_datasets
from bgectl.data.prompts import Prompts, prefix_of
from bgectl.encode import embedder_over, refuse_decoder, token_budget
from bgectl.errors import DataError, RunError, UsageError
from bgectl.evaluate.judged import load_judged
from bgectl.evaluate.measure import evaluate_embedder
from bgectl.losses.embedding import EmbeddingLoss
from bgectl.models.encoder import (
    Encoder,
    load_backbone,
    load_tokenizer,
    position_limit,
    quiet_libraries,
    save_embedder,
)
from bgectl.models.facts import EmbedderFacts, embedder_facts
from bgectl.models.hub import Hub
from bgectl.options.train import TrainBaseOptions
from bgectl.train.batches import BatchPlan
from bgectl.train.card import model_card
from bgectl.train.collate import Collator, Groups
from bgectl.train.folder import BEST, LOG, check_folder, claim_folder, write_mark, write_model
from bgectl.train.monitor import HeldOut, Interrupted, Progress, draw_curves
from bgectl.train.trainer import EmbedderTrainer, StepModel

METRIC = "nDCG@10"
"""Decides which weights are the best."""


def run(options: TrainBaseOptions) -> None:
    """Train, and leave a folder that sentence-transformers, transformers and FlagEmbedding open.

    Raises:
        UsageError: Options that this machine or the output folder does not allow.
        DataError: Training or held-out data with defects.
        RunError: The model cannot be loaded, the loss is not finite, or the disk is full.
    """
    check_folder(options.output_dir, overwrite=options.overwrite_output_dir)
    check_precision(options)
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="bgectl-") as unpacked:
        collection = build_datasets(
            options.train_data,
            group_size=options.train_group_size,
            batch_size=options.per_device_train_batch_size,
            seed=options.seed,
            unpack_to=Path(unpacked),
            same_dataset=options.same_dataset_within_batch,
            small_threshold=options.small_threshold,
            drop_threshold=options.drop_threshold,
            most_rows=options.max_example_num_per_dataset,
        )
        plan = BatchPlan(
            collection,
            batch_size=options.per_device_train_batch_size,
            seed=options.seed,
            same_dataset=options.same_dataset_within_batch,
            drop_last=options.dataloader_drop_last,
        )
        report(plan, collection, options)
        plan.refuse_empty(allow=options.allow_empty_datasets)
        judged = load_judged(options.eval_data, options.eval_split) if options.eval_data else None
        set_seed(options.seed)
        encoder, tokenizer, facts = load_model(options, collection)
        prompts = prompts_of(options)
        lengths = fit_lengths(options, encoder)
        claim_folder(options.output_dir)

        def save_to(folder: Path) -> None:
            save_embedder(folder, encoder.backbone, tokenizer, facts)

        best = options.output_dir / BEST
        held_out = None
        if judged is not None:
            # As the saved folder will be used, so that `bgectl eval` gives the card's numbers.
            spoken = replace(prompts, query_instruction=query_instruction(options, collection))
            scoring = embedder_over(encoder, tokenizer, facts, spoken, *lengths)

            def measure() -> dict[str, float]:
                encoder.eval()
                try:
                    return evaluate_embedder(judged, scoring).means
                finally:
                    encoder.train()

            held_out = HeldOut(options.eval_steps, measure, lambda: write_best(best, encoder), METRIC)
        trainer = build_trainer(options, encoder, tokenizer, prompts, lengths, collection, plan, save_to, held_out)
        try:
            with Interrupted() as interrupted:
                trainer.add_callback(interrupted)
                result = trainer.train()
        except torch.OutOfMemoryError as problem:
            raise RunError(
                "the GPU's memory does not hold a step",
                hint="give --sub-batch-size 16, or lower --per-device-train-batch-size or --passage-max-len",
            ) from problem
        except (OSError, SafetensorError, RuntimeError) as problem:
            # torch's own writer of the optimiser's state raises a RuntimeError when the disk is full.
            if isinstance(problem, RuntimeError) and "PytorchStreamWriter" not in str(problem):
                raise
            reason = str(getattr(problem, "strerror", None) or problem).split("\n")[0]
            place = getattr(problem, "filename", None) or options.output_dir
            raise RunError(f"cannot be read or written: {reason}", where=str(place)) from problem
        except DataError as problem:
            # From a loader process it comes with that process's traceback around it.
            raise DataError(problem.message.rsplit("DataError: ", 1)[-1].strip(), where=problem.where) from problem
        finally:
            trainer.progress.close()
    finish(options, encoder, facts, trainer, plan, held_out, best, save_to, result.training_loss)


def check_precision(options: TrainBaseOptions) -> None:
    """Refuse a precision that the machine cannot train in.

    Raises:
        UsageError: float16 on a CPU.
    """
    on_cpu = options.use_cpu or not torch.cuda.is_available()
    if options.fp16 and on_cpu:
        raise UsageError("float16 does not train on a CPU", where="--fp16", hint="use --bf16, or neither, there")


def load_model(
    options: TrainBaseOptions, collection: Collection
) -> tuple[Encoder, PreTrainedTokenizerBase, EmbedderFacts]:
    """The encoder in float32, its tokenizer, and what will be written beside the trained weights."""
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    name = options.model_name_or_path
    facts = embedder_facts(name, hub, pooling=options.sentence_pooling_method)
    console.info(f"{name}: {facts.describe()}")
    query, passage = saved_prompts(options, collection)
    if facts.query_prompt and facts.query_prompt != query:
        console.warn(
            f"{name} was trained with the query prompt {facts.query_prompt!r} and this run uses {query!r}; "
            "--query-instruction-for-retrieval sets it"
        )
    tokenizer = load_tokenizer(options.tokenizer_name or name, hub)
    backbone = load_backbone(name, hub, config_name=options.config_name)
    refuse_decoder(name, backbone.config)
    limit = position_limit(backbone.config)
    longest = max(options.query_max_len, options.passage_max_len)
    facts = replace(
        facts,
        normalize=options.normalize_embeddings,
        query_prompt=query,
        passage_prompt=passage,
        max_length=min(longest, limit or longest),
        sources={},
    )
    if options.fix_position_embedding:
        freeze_positions(backbone)
    if options.gradient_checkpointing:
        recompute_activations(backbone)
    return Encoder(backbone, facts.pooling), tokenizer, facts


def recompute_activations(backbone: Any) -> None:
    """Turn gradient checkpointing on; transformers 5 renamed it in a minor release."""
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def freeze_positions(backbone: Any) -> None:
    """Keep the position embeddings as they are.

    Raises:
        UsageError: The model has none.
    """
    frozen = [p for name, p in backbone.named_parameters() if "position_embeddings" in name]
    if not frozen:
        raise UsageError("the model has no position embeddings to freeze", where="--fix-position-embedding")
    for parameter in frozen:
        parameter.requires_grad_(False)


def prompts_of(options: TrainBaseOptions) -> Prompts:
    """The instructions that rows without a `prompt` get."""
    return Prompts(
        options.query_instruction_for_retrieval,
        options.query_instruction_format,
        options.passage_instruction_for_retrieval,
        options.passage_instruction_format,
    )


def query_instruction(options: TrainBaseOptions, collection: Collection) -> str | None:
    """The option's, else the `prompt` of the rows where all retrieval rows have the same one."""
    if options.query_instruction_for_retrieval is not None:
        return options.query_instruction_for_retrieval
    files = [file for file in collection.files() if not any("symmetric" in kind for kind in file.types)]
    found = {prompt for file in files for prompt in file.prompts}
    return found.pop() if len(found) == 1 else None


def saved_prompts(options: TrainBaseOptions, collection: Collection) -> tuple[str, str]:
    """The prefixes that a user of the trained model should put before queries and passages."""
    query = prefix_of(options.query_instruction_format, query_instruction(options, collection))
    passage = prefix_of(options.passage_instruction_format, options.passage_instruction_for_retrieval)
    if query is None or passage is None:
        console.warn(
            "the instruction format puts text behind the query or passage, which a model folder cannot say; "
            "whoever uses the model must do so"
        )
    return query or "", passage or ""


def fit_lengths(options: TrainBaseOptions, encoder: Encoder) -> tuple[int, int]:
    """Query and passage length, no longer than the model's position table."""
    limit = position_limit(encoder.backbone.config)
    asked = (options.query_max_len, options.passage_max_len)
    if limit is not None and max(asked) > limit:
        console.warn(f"the model takes {limit} tokens; longer texts are cut there")
    return min(asked[0], limit or asked[0]), min(asked[1], limit or asked[1])


def matryoshka_dims(options: TrainBaseOptions, width: int) -> list[int]:
    """The prefixes to train: those given, else the whole, half, … down to 32."""
    if not options.use_mrl:
        return []
    if options.mrl_dims:
        return options.mrl_dims
    dims = [width]
    while dims[-1] // 2 >= 32:
        dims.append(dims[-1] // 2)
    return dims


def report(plan: BatchPlan, collection: Collection, options: TrainBaseOptions) -> None:
    """Say what will be trained on, dataset by dataset, before anything is trained."""
    rows = [
        [line.name, f"{line.rows:,}", str(line.batch_size), str(line.group_size), f"{line.steps:,}",
         f"{line.left_out:,}" + (f" ({line.why})" if line.why else "")]
        for line in plan.report()
    ]  # fmt: skip
    heads = ["dataset", "rows", "queries a step", "passages a query", "steps", "left out"]
    console.table("Training data", heads, rows)
    mixed = "" if options.same_dataset_within_batch else " (datasets mixed)"
    console.info(f"{len(plan):,} steps an epoch{mixed}")
    if options.knowledge_distillation:
        scored = sum(file.scored for file in collection.files())
        total = sum(len(file) for file in collection.files())
        console.info(f"distillation: {scored:,} of {total:,} rows have teacher scores")
        if not scored:
            raise UsageError(
                "no row has teacher scores", where="--knowledge-distillation", hint="`bgectl score` adds them"
            )


def training_arguments(options: TrainBaseOptions) -> TrainingArguments:
    """Our options in the form transformers' Trainer takes; evaluation and progress are our own."""
    warmup: float = options.warmup_steps if options.warmup_steps is not None else (
        0.1 if options.warmup_ratio is None else options.warmup_ratio
    )  # fmt: skip
    same_name = (
        "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim", "seed", "bf16",
        "fp16", "dataloader_num_workers", "logging_steps", "save_total_limit", "run_name",
    )  # fmt: skip
    try:
        return TrainingArguments(
            output_dir=str(options.output_dir),
            # Below 1 it is a share of the steps.
            warmup_steps=warmup,
            save_strategy="steps" if options.save_steps else "no",
            save_steps=options.save_steps or 500,
            report_to=options.report_to or "none",
            # Short runs have a curve too.
            logging_first_step=True,
            # transformers refuses bfloat16 without a GPU unless it hears that a CPU is meant.
            use_cpu=options.use_cpu or (options.bf16 and not torch.cuda.is_available()),
            eval_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            **{name: getattr(options, name) for name in same_name},
        )
    except (ValueError, ImportError) as problem:
        raise UsageError(str(problem).strip().split("\n")[0]) from problem


def build_trainer(
    options: TrainBaseOptions, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, prompts: Prompts,
    lengths: tuple[int, int], collection: Collection, plan: BatchPlan, save_to: Any, held_out: HeldOut | None,
) -> EmbedderTrainer:  # fmt: skip
    """Everything the loop needs, put together."""
    arguments = training_arguments(options)
    collator = Collator(
        tokenizer,
        *lengths,
        piece_tokens=token_budget(None, arguments.device) if options.sub_batch_size is None else 1 << 60,
        piece_texts=options.sub_batch_size or 1 << 30,
        pad_to_multiple_of=options.pad_to_multiple_of,
        mask_duplicates=options.mask_duplicates,
        distill=options.knowledge_distillation,
    )
    loss = EmbeddingLoss(
        options.temperature,
        options.normalize_embeddings,
        options.kd_loss_type if options.knowledge_distillation else None,
        matryoshka_dims(options, encoder.dimension),
    )
    groups = Groups(
        collection, prompts, seed=options.seed, shuffle_ratio=options.shuffle_ratio,
        same_dataset=options.same_dataset_within_batch,
    )  # fmt: skip
    try:
        trainer = EmbedderTrainer(
            StepModel(encoder), arguments, groups=groups, plan=plan, collator=collator, loss=loss, save_to=save_to,
            cached=options.sub_batch_size is not None, callbacks=[held_out] if held_out else [],
        )  # fmt: skip
    except (RuntimeError, ImportError, ValueError) as problem:
        if any(words in str(problem) for words in ("is not installed", "requires", "is not supported")):
            raise UsageError(str(problem).split("\n")[0], where="--report-to") from problem
        raise
    trainer.remove_callback(PrinterCallback)
    trainer.progress = Progress(options.output_dir / LOG, lambda: (trainer.examples_seen, trainer.tokens_seen))
    trainer.add_callback(trainer.progress)
    if held_out is not None:
        held_out.log = trainer.log
    return trainer


def write_best(folder: Path, encoder: Encoder) -> None:
    """Keep the weights as they are now; the last step may not be the best."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in encoder.backbone.state_dict().items()}
    save_file(state, folder / "weights.new")
    (folder / "weights.new").replace(folder / "weights.safetensors")


def refuse_broken(encoder: Encoder, steps: int) -> None:
    """The loss is looked at before each step; nobody has looked at what the last step made of the weights.

    Raises:
        RunError: A weight is not finite.
    """
    broken = [name for name, weight in encoder.backbone.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise RunError(
            f"after step {steps} {len(broken)} weights are not finite, such as {broken[0]}; no model is written",
            hint="lower --learning-rate",
        )


def finish(
    options: TrainBaseOptions, encoder: Encoder, facts: EmbedderFacts, trainer: EmbedderTrainer, plan: BatchPlan,
    held_out: HeldOut | None, best: Path, save_to: Any, loss: float,
) -> None:  # fmt: skip
    """Write the final folder: best weights, card, options, curves; then say where it is."""
    steps = trainer.state.global_step
    kept = None
    if held_out is not None and held_out.best_step is not None:
        from safetensors.torch import load_file

        encoder.backbone.load_state_dict(load_file(best / "weights.safetensors"))
        kept = f"step {held_out.best_step} of {steps}"
        if held_out.best[METRIC] < held_out.before[METRIC]:
            console.warn(
                f"{METRIC} fell from {held_out.before[METRIC]:.4f} to {held_out.best[METRIC]:.4f}: training made "
                "retrieval worse; a lower --learning-rate or cleaner negatives may help"
            )
    shutil.rmtree(best, ignore_errors=True)
    refuse_broken(encoder, steps)
    values = options.model_dump(mode="json")
    values["token"] = None
    changed = [name for name in options.model_fields_set if name not in {"token", "output_dir"}]

    def write(folder: Path) -> None:
        save_to(folder)
        draw_curves(trainer.state.log_history, folder / "curves.png", METRIC)
        card = model_card(
            folder=options.output_dir.absolute(),
            base_model=options.model_name_or_path,
            facts=facts,
            plan=plan.report(),
            options=values,
            changed=[name for name in type(options).model_fields if name in changed],
            before=held_out.before if held_out else None,
            after=held_out.best if held_out else None,
            kept=kept,
            steps=steps,
            loss=loss,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        versions = f"# bgectl {__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n"
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / "options.yaml").write_text(versions + text, encoding="utf-8")

    write_mark(options.output_dir, write_model(options.output_dir, write))
    console.info(f"trained model: {options.output_dir}" + (f" (weights of {kept})" if kept else ""))
