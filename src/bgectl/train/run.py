"""`bgectl train base` and `train m3`, from options to a folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from bgectl import __version__, console, signals
from bgectl.data.datasets import Collection, build_datasets
from bgectl.data.icl import KEPT_FREE, IclTexts, Wording
from bgectl.data.prompts import Prompts
from bgectl.distributed import gather_objects, patient_barrier
from bgectl.encode import embedder_over
from bgectl.errors import DataError, Interrupted, RunError, UsageError
from bgectl.evaluate.judged import Judged, load_judged
from bgectl.evaluate.measure import evaluate_embedder, evaluate_heads
from bgectl.gradcache import ENCODING
from bgectl.heads import SCORES
from bgectl.launch import Place, place
from bgectl.losses.embedding import EmbeddingLoss
from bgectl.losses.unified import HEADS, UnifiedLoss
from bgectl.manifest import described, write_manifest
from bgectl.models.adapter import save_adapter
from bgectl.models.encoder import ADAPTER, Encoder, quiet_libraries, save_beside, save_embedder, written
from bgectl.models.facts import EmbedderFacts
from bgectl.models.files import model_facts
from bgectl.models.hub import Hub
from bgectl.models.lora import merged, trained_names
from bgectl.models.m3 import apart, colbert_sizes, save_heads
from bgectl.options import command_name
from bgectl.options.train import TrainIclOptions, TrainLlmOptions, TrainM3Options, TrainOptions
from bgectl.train.arguments import check_machine, check_trainer_names, training_arguments
from bgectl.train.batches import BatchPlan
from bgectl.train.card import model_card
from bgectl.train.checkpoints import chosen, newest, refuse_another_run, state_of
from bgectl.train.collate import Collator, Groups
from bgectl.train.folder import (
    BEST,
    LOG,
    check_folder,
    claim_folder,
    lock_folder,
    reclaim_folder,
    write_mark,
    write_model,
)
from bgectl.train.memory import is_full
from bgectl.train.merge import merge
from bgectl.train.model import (
    fit_lengths,
    load_model,
    matryoshka_dims,
    prompts_of,
    query_instruction,
)
from bgectl.train.monitor import Checkpoints, Collapse, HeldOut, Progress, draw_curves, mean_loss, rewind_log
from bgectl.train.objective import DenseObjective, M3Objective, Objective
from bgectl.train.preflight import Hours, before_training, mib, show_probe
from bgectl.train.probe import Fitting, Looked, choose, look, measure, rehearsing
from bgectl.train.report import caches, estimate_memory, optimiser_steps, report, say, show_dry_run, weight_of
from bgectl.train.size import advice, size_of
from bgectl.train.trainer import EmbedderTrainer, FromRoot, Packing, StepModel

MERGED = "merged_model"
"""Where the whole model lies in the output folder of a training with adapters."""

METRIC = "nDCG@10"
"""Decides which weights are the best."""

PIECE_TOKENS, PIECE_TOKENS_CPU = 65_536, 1_024
"""Tokens of a piece of a step. A CPU's caches are small: 1,024 ran faster there than 2,048, and that than 4,096."""


@dataclass(frozen=True)
class Model:
    """What is trained, and what its folder will say."""

    encoder: Encoder
    tokenizer: PreTrainedTokenizerBase
    facts: EmbedderFacts
    lengths: tuple[int, int]
    """Tokens of a query and of a passage."""

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the folder with these weights; see `EmbedderTrainer.weights`."""
        backbone, heads = apart(state)
        lora, module = self.encoder.lora, self.encoder.backbone
        if lora is not None:
            place = folder if self.encoder.alone else folder / ADAPTER
            trained = trained_names(module)
            with written(place):
                save_adapter(
                    place, {name: weight for name, weight in backbone.items() if name in trained}, lora.config,
                    fingerprint=lora.fingerprint, before=lora.before,
                )  # fmt: skip
            save_beside(place, self.tokenizer, self.facts, module.config)
            if self.encoder.alone:
                return
            backbone = merged(backbone, lora.config)
        save_embedder(folder, module, self.tokenizer, self.facts, state=backbone)
        if heads:
            save_heads(folder, heads)


def run(options: TrainOptions) -> None:
    """Train, and leave a folder that sentence-transformers, transformers and FlagEmbedding open.

    Raises:
        UsageError: Options that this machine or the output folder does not allow.
        DataError: Training or held-out data with defects.
        RunError: The model cannot be loaded, the loss is not finite, or the disk is full.
        Interrupted: By a signal, after a checkpoint was written.
    """
    # A dry run starts no processes, and shows the plan of those it is asked for.
    here = Place(0, options.processes * options.nnodes) if options.dry_run else place()
    if not here.first:
        console.be_quiet()
    if here.first and not options.dry_run:
        goes_on = options.resume is not None or here.restarts > 0
        check_folder(options.output_dir, overwrite=options.overwrite_output_dir, resume=goes_on)
    if not options.dry_run or options.probe:
        check_machine(options)
    check_trainer_names(options)
    checkpoint = chosen("auto", options.output_dir) if here.restarts else None
    checkpoint = checkpoint or chosen(options.resume, options.output_dir)
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="bgectl-") as unpacked, signals.half_written(Path(unpacked)):
        collection, plan = plan_batches(options, here, options.cache_path or Path(unpacked))
        report(plan, collection, options)
        plan.refuse_empty(allow=options.allow_empty_datasets)
        judged = load_judged(options.eval_data, options.eval_split) if options.eval_data else None
        set_seed(options.seed)
        encoder, tokenizer, facts = load_model(options, collection)
        model = Model(encoder, tokenizer, facts, fit_lengths(options, encoder))
        groups = Groups(
            collection, prompts_of(options), seed=options.seed, shuffle_ratio=options.shuffle_ratio,
            same_dataset=options.same_dataset_within_batch,
        )  # fmt: skip
        if options.dry_run:
            looked = show_dry_run(plan, groups, collator_of(options, model, on_cpu(options)), encoder, options)
            if probes(options):
                probe(options, model, groups, plan, judged, looked)
            return
        with claimed(options.output_dir, checkpoint, here):
            trainer, held_out = build_trainer(options, model, groups, plan, judged, checkpoint)
            with told(options, trainer):
                # Each process has dropout of its own.
                torch.manual_seed(options.seed + here.rank)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.stopping.stopped:
                raise stopped(trainer)
            finish(options, model, trainer, plan, held_out, here)


def plan_batches(options: TrainOptions, here: Place, unpack_to: Path) -> tuple[Collection, BatchPlan]:
    """The datasets, and which rows make up which step of this process."""
    collection = build_datasets(
        options.train_data,
        group_size=options.train_group_size,
        batch_size=options.per_device_train_batch_size,
        seed=options.seed,
        unpack_to=unpack_to,
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
        rank=here.rank,
        world=here.world,
    )
    return collection, plan


def probes(options: TrainOptions) -> bool:
    """Whether a dry run takes steps."""
    return not on_cpu(options) if options.probe is None else options.probe


def probe(
    options: TrainOptions, model: Model, groups: Groups, plan: BatchPlan, judged: Judged | None, looked: Looked
) -> None:  # fmt: skip
    """Take some steps, and print what they take, as the rest of a dry run."""
    if options.fsdp or options.deepspeed is not None:
        console.warn(
            "no step is tried: a dry run is one process, and --fsdp and --deepspeed cut the model over several"
        )
        return
    with tempfile.TemporaryDirectory(prefix="bgectl-") as folder:
        alone = options.model_copy(
            update={"output_dir": Path(folder), "report_to": [], "resume": None, "auto_sub_batch": False}
        )
        trainer, _ = build_trainer(alone, model, groups, plan, None, None)

        def take() -> None:
            asked = trainer.packing
            with rehearsing(trainer) as rehearsal:
                if options.auto_sub_batch:
                    asked = choose(rehearsal, looked, asked, may_cache=trainer.may_cache)
                measured = measure(rehearsal, looked, asked)
            show_probe(measured, looked, chosen=options.auto_sub_batch)
            if plan.world > 1:
                say(
                    f"each of {plan.world} processes holds about {mib(exchanged(looked, model, options, plan.world))} "
                    "MiB more: gradients and vectors on their way to the others, estimated"
                )
            if measured.longest is None:
                size = size_of(looked.longest, asked.tokens, trainer.data_collator)
                say(trainer.advice(size, asked.cached, ENCODING) or "nothing that is not asked for makes it smaller")
            if not measured.ordinary:
                return
            spent = Hours(optimiser_steps(plan, options), measured, looked, options)
            if judged is not None:
                embedder = embedder_over(
                    model.encoder, model.tokenizer, model.facts, prompts_of(options), *model.lengths
                )
                spent.evaluate(judged, embedder, trainer.meter)
            spent.show(model.encoder)

        before_training(trainer, take)


def exchanged(looked: Looked, model: Model, options: TrainOptions, world: int) -> int:
    """Bytes that a process of several holds beside what one alone does."""
    one, several = (estimate_memory([looked.longest], model.encoder, options, count) for count in (1, world))
    return several.scores - one.scores + one.gradients


def on_cpu(options: TrainOptions) -> bool:
    """Whether the run is on a CPU."""
    return options.on_cpu or not torch.cuda.is_available()


def collator_of(options: TrainOptions, model: Model, small_pieces: bool) -> Collator:
    """Groups to tensors; `small_pieces` where the device is a CPU, whose caches are small."""
    budget = options.sub_batch_tokens or (PIECE_TOKENS_CPU if small_pieces else PIECE_TOKENS)
    return Collator(
        model.tokenizer,
        *model.lengths,
        piece_tokens=budget if options.sub_batch_tokens or not options.sub_batch_size else 1 << 60,
        piece_texts=options.sub_batch_size or 1 << 30,
        pad_to_multiple_of=options.pad_to_multiple_of,
        distill=options.knowledge_distillation,
        end=model.encoder.end,
        icl=icl_of(options, model),
    )


def icl_of(options: TrainOptions, model: Model) -> IclTexts | None:
    """What puts examples before queries; None where nothing does."""
    if not isinstance(options, TrainIclOptions):
        return None
    if model.lengths[0] <= KEPT_FREE:
        console.warn(
            f"queries of {model.lengths[0]} tokens have no examples: {KEPT_FREE} are kept free for the query itself"
        )
    return IclTexts(
        Wording(model.tokenizer, options.icl_suffix_str, model.encoder.end), *model.lengths,
        options.example_query_max_len, options.example_passage_max_len, options.retrieval_use_examples,
    )  # fmt: skip


@contextmanager
def claimed(folder: Path, checkpoint: Path | None, here: Place) -> Iterator[None]:
    """Hold the output folder, made ready for the run. The first process does so for all."""
    if not here.first:
        yield
        return
    with lock_folder(folder):
        if checkpoint is None:
            claim_folder(folder)
        else:
            reclaim_folder(folder, checkpoint)
        signals.going_on(lambda: interrupted(folder))
        yield


def build_trainer(
    options: TrainOptions, model: Model, groups: Groups, plan: BatchPlan, judged: Judged | None,
    checkpoint: Path | None,
) -> tuple[EmbedderTrainer, HeldOut | None]:  # fmt: skip
    """Everything the loop needs, put together, and brought to where the checkpoint was."""
    arguments = training_arguments(options)
    agree(plan, arguments)
    try:
        trainer = EmbedderTrainer(
            StepModel(model.encoder), arguments, groups=groups, plan=plan,
            collator=collator_of(options, model, arguments.device.type == "cpu"),
            objective=objective_of(options, model.encoder), save_to=model.save, cached=caches(options),
            retries=options.auto_sub_batch, may_cache=options.gradient_cache is not False,
            advice=partial(advice, options), layer_decay=options.layerwise_lr_decay, fsdp=options.fsdp,
        )  # fmt: skip
    except (RuntimeError, ImportError, ValueError) as problem:
        if any(words in str(problem) for words in ("is not installed", "requires", "is not supported")):
            raise UsageError(str(problem).split("\n")[0], where="--report-to") from problem
        raise
    if options.auto_sub_batch and checkpoint is None:
        trainer.add_callback(Fitting(trainer, lambda: looked_at(options, model, groups, plan, trainer)))
    held_out = None
    if judged is not None:
        held_out = held_out_of(options, model, groups.collection, judged, trainer)
        trainer.add_callback(held_out)
    identity = identity_of(options, plan)

    def state() -> dict[str, Any]:
        counts: dict[str, Any] = {"examples": trainer.examples_seen, "tokens": trainer.tokens_seen}
        counts |= {"pieces": asdict(trainer.packing)}
        return {**identity, **counts, "held_out": held_out.state() if held_out else None}

    if checkpoint is not None:
        kept = state_of(checkpoint)
        refuse_another_run(kept, identity, checkpoint)
        trainer.examples_seen, trainer.tokens_seen = kept["examples"], kept["tokens"]
        if "pieces" in kept:
            trainer.packing = packing_of(options, trainer.packing, Packing(**kept["pieces"]))
        if held_out is not None and kept["held_out"]:
            held_out.restore(kept["held_out"])
        if arguments.process_index == 0:
            rewind_log(options.output_dir / LOG, int(checkpoint.name.rpartition("-")[2]))
        console.info(f"going on from {checkpoint}")
    trainer.remove_callback(PrinterCallback)
    trainer.progress = Progress(options.output_dir / LOG, lambda: (trainer.examples_seen, trainer.tokens_seen))
    trainer.checkpoints = Checkpoints(state, options.save_total_limit)
    collapse = Collapse(lambda: trainer.examples_seen)
    for callback in (trainer.progress, collapse, trainer.checkpoints, trainer.stopping):
        trainer.add_callback(callback)
    return trainer, held_out


def packing_of(options: TrainOptions, asked: Packing, kept: Packing) -> Packing:
    """How a run that goes on takes its steps: as before where the options leave it open, as other pieces round
    differently."""
    if options.auto_sub_batch:
        return kept
    sized = options.sub_batch_tokens is not None or options.sub_batch_size is not None
    cached = options.gradient_cache is not None or options.sub_batch_size is not None
    return Packing(asked.tokens if sized else kept.tokens, asked.cached if cached else kept.cached)


def looked_at(
    options: TrainOptions, model: Model, groups: Groups, plan: BatchPlan, trainer: EmbedderTrainer
) -> Looked:  # fmt: skip
    """Steps of this process to try."""
    return look(plan, groups, trainer.data_collator, weight_of(model.encoder, options))


def objective_of(options: TrainOptions, encoder: Encoder) -> Objective:
    """The loss of a step."""
    distillation = options.kd_loss_type if options.knowledge_distillation else None
    dense = EmbeddingLoss(
        options.temperature,
        options.normalize_embeddings,
        distillation,
        matryoshka_dims(options, encoder.dimension),
        options.false_negative_margin,
    )
    if not isinstance(options, TrainM3Options) or not options.heads:
        return DenseObjective(dense, options.cross_device is not None, options.mask_duplicates)
    margin = None if options.false_negative_margin is None else options.false_negative_margin / options.temperature
    return M3Objective(
        dense, UnifiedLoss(distillation, margin), options.cross_device, options.mask_duplicates,
        options.self_distill_start_step if options.use_self_distill else None,
    )  # fmt: skip


def identity_of(options: TrainOptions, plan: BatchPlan) -> dict[str, Any]:
    """What must be the same for a run to go on with the same steps."""
    names = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "train_group_size",
        "same_dataset_within_batch", "dataloader_drop_last",
    )  # fmt: skip
    return {"training data": plan.digest(), "processes": plan.world} | {name: getattr(options, name) for name in names}


def agree(plan: BatchPlan, arguments: TrainingArguments) -> None:
    """All processes must see the same data, or each would take its part of a different plan.

    Raises:
        DataError: They do not.
    """
    assert arguments.device is not None  # asking for it is what connects the processes
    digests = gather_objects(plan.digest())
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise DataError(
            f"process {other} sees other training data than process 0",
            hint="give the same files, in the same order, on all machines",
        )  # fmt: skip


def held_out_of(
    options: TrainOptions, model: Model, collection: Collection, judged: Judged, trainer: EmbedderTrainer
) -> HeldOut:
    """Measuring while training, as the saved folder will be used, so that `bgectl eval` gives the card's numbers."""
    spoken: Prompts = replace(prompts_of(options), query_instruction=query_instruction(options, collection))

    def measure() -> dict[str, float]:
        # A sharded model is gathered by what is called from its root.
        encoder: Any = FromRoot(trainer.model) if options.fsdp else model.encoder
        scoring = embedder_over(encoder, model.tokenizer, model.facts, spoken, *model.lengths)
        model.encoder.eval()
        try:
            if not options.heads:
                return evaluate_embedder(judged, scoring).means
            kinds = evaluate_heads(judged, scoring, SCORES)
            # The sum of all is what decides.
            return kinds["hybrid"].means | {f"{METRIC} {kind}": kinds[kind].means[METRIC] for kind in HEADS}
        finally:
            model.encoder.train()

    def keep() -> None:
        state = trainer.weights()
        if trainer.args.should_save:
            write_best(options.output_dir / BEST, state)

    held_out = HeldOut(options.eval_steps, measure, keep, METRIC)
    held_out.log = trainer.log
    return held_out


def write_best(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Keep the weights as they are now; the last step may not be the best."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / "weights.new")
    (folder / "weights.new").replace(folder / "weights.safetensors")


@contextmanager
def told(options: TrainOptions, trainer: EmbedderTrainer) -> Iterator[None]:
    """Around training: signals end it in order, and what the libraries raise becomes an error that says what to do."""
    try:
        with trainer.stopping:
            yield
    except (OSError, SafetensorError, RuntimeError, MemoryError) as problem:
        if is_full(problem):
            raise RunError(
                f"out of memory after step {trainer.state.global_step}, in {trainer.part}: the optimiser's state, an "
                "evaluation, a checkpoint, or reading ahead",
                hint="--optim adafactor keeps nearly no state, where AdamW keeps 8 bytes for each weight; --use-lora "
                "trains fewer; --dataloader-num-workers 0 reads in the same process",
            ) from problem
        # torch's own writer of the optimiser's state raises a RuntimeError when the disk is full.
        if isinstance(problem, RuntimeError | MemoryError) and "PytorchStreamWriter" not in str(problem):
            raise
        reason = str(getattr(problem, "strerror", None) or problem).split("\n")[0]
        where = getattr(problem, "filename", None) or options.output_dir
        raise RunError(f"cannot be read or written: {reason}", where=str(where)) from problem
    except DataError as problem:
        # From a loader process it comes with that process's traceback around it.
        raise DataError(problem.message.rsplit("DataError: ", 1)[-1].strip(), where=problem.where) from problem
    finally:
        trainer.progress.close()


def interrupted(folder: Path) -> tuple[str, str | None]:
    """What a run says that was ended at once, not after a step."""
    last = newest(folder)
    if last is None:
        return "interrupted before the first checkpoint", "the same command with --resume auto starts anew"
    return f"interrupted; newest checkpoint: {last}", "the same command with --resume auto goes on from there"


def stopped(trainer: EmbedderTrainer) -> Interrupted:
    """The end of a run that a signal stopped."""
    return Interrupted(
        f"interrupted after step {trainer.state.global_step}; checkpoint: {trainer.checkpoints.last}",
        signal=trainer.stopping.stopped,
        hint="the same command with --resume auto goes on from there",
    )


def refuse_broken(state: Mapping[str, Tensor], steps: int) -> None:
    """The loss is looked at before each step; nobody has looked at what the last step made of the weights.

    Raises:
        RunError: A weight is not finite.
    """
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise RunError(
            f"after step {steps} {len(broken)} weights are not finite, such as {broken[0]}; no model is written",
            hint="lower --learning-rate",
        )


def finish(
    options: TrainOptions, model: Model, trainer: EmbedderTrainer, plan: BatchPlan, held_out: HeldOut | None,
    here: Place,
) -> None:  # fmt: skip
    """Write the final folder: best weights, card, options, curves; then say where it is."""
    steps = trainer.state.global_step
    state = trainer.weights()
    merges = isinstance(options, TrainLlmOptions) and options.save_merged_lora_model
    meet = patient_barrier() if merges else lambda: None
    if not here.first:
        meet()
        return
    kept = None
    best = options.output_dir / BEST
    if held_out is not None and held_out.best_step is not None:
        state = load_file(best / "weights.safetensors")
        kept = f"step {held_out.best_step} of {steps}"
        if held_out.best[METRIC] < held_out.before[METRIC]:
            console.warn(
                f"{METRIC} fell from {held_out.before[METRIC]:.4f} to {held_out.best[METRIC]:.4f}: training made "
                "retrieval worse; a lower --learning-rate or cleaner negatives may help"
            )
    shutil.rmtree(best, ignore_errors=True)
    refuse_broken(state, steps)
    values = options.model_dump(mode="json")
    values["token"] = None
    changed = [name for name in options.model_fields_set if name not in {"token", "output_dir"}]

    def write(folder: Path) -> None:
        model.save(folder, state)
        draw_curves(trainer.state.log_history, folder / "curves.png", METRIC)
        card = model_card(
            folder=options.output_dir.absolute(),
            base_model=options.model_name_or_path,
            facts=model.facts,
            plan=plan.report(),
            options=values,
            changed=[name for name in type(options).model_fields if name in changed],
            before=held_out.before if held_out else None,
            after=held_out.best if held_out else None,
            kept=kept,
            steps=steps,
            loss=mean_loss(trainer.state.log_history),
            colbert=colbert_sizes(model.encoder),
            adapter=model.encoder.alone,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        versions = f"# bgectl {__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n"
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / "options.yaml").write_text(versions + text, encoding="utf-8")
        hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
        facts = {
            "models": model_facts([options.model_name_or_path], hub), "seed": options.seed, "processes": here.world,
            "steps": steps, "weights_of": held_out.best_step if held_out and held_out.best_step else steps,
        }  # fmt: skip
        inputs = described({"train_data": options.train_data, "eval_data": options.eval_data})
        write_manifest(folder, command_name(options), inputs, facts, options)

    made = write_model(options.output_dir, write)
    write_mark(options.output_dir, [*made, MERGED] if merges else made)
    what = "adapter" if model.encoder.alone else "model"
    console.info(f"trained {what}: {options.output_dir}" + (f" (weights of {kept})" if kept else ""))
    if merges:
        save_merged(options)
    meet()


def save_merged(options: TrainOptions) -> None:
    """Write the adapter and its base as a whole model into the output folder; what a former run left there goes."""
    # Else transformers would cut what is loaded now over all processes, which are not here.
    unset_hf_deepspeed_config()
    target = options.output_dir / MERGED
    shutil.rmtree(target, ignore_errors=True)
    hub = Hub(None, options.cache_dir, options.token, options.trust_remote_code)
    merge([str(options.output_dir)], target, hub=hub, base=options.model_name_or_path, base_revision=options.revision)
