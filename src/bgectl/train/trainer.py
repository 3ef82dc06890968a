"""transformers' Trainer with our batches, our loss and our folder layout; everything else is its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from bgectl import console
from bgectl.distributed import active, average_gradients, gather, gather_objects, largest, rank, world
from bgectl.errors import RunError
from bgectl.gradcache import BACKWARD, ENCODING, LOSS, RandomState, cached_backward, joined, parted_backward
from bgectl.models.encoder import Encoder
from bgectl.models.lora import trained_names
from bgectl.train.batches import BatchPlan
from bgectl.train.collate import AsArrays, Collator, Drawn, Groups, as_tensors
from bgectl.train.memory import is_full, meter_of
from bgectl.train.model import learning_rates
from bgectl.train.monitor import Stopping
from bgectl.train.objective import Objective
from bgectl.train.shard import Sharded, gathered_weights, load_optimizer, save_optimizer, shard, whole_weights
from bgectl.train.size import StepSize, pieces_of, shortened, size_of

ENCODER, BACKBONE = "encoder.", "backbone."
"""What stands before the names of the encoder's weights in a `StepModel`, and of the backbone's in an encoder."""


class StepModel(nn.Module):
    """The encoder over the pieces of a step; one forward call holds them all, as DDP wants it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        # transformers looks here for the sizes that DeepSpeed's `auto` values are made of.
        self.config = encoder.backbone.config

    def forward(self, pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What the encoder gives for all pieces, in their order; see `Encoder.outputs`."""
        return joined([self.encoder.outputs(**piece) for piece in pieces])


class FromRoot(nn.Module):
    """A `StepModel` in the place of its encoder."""

    def __init__(self, model: StepModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, D)."""
        return self.outputs(input_ids, attention_mask)["dense"]

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """See `Encoder.outputs`."""
        # Weights gathered in inference mode could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            piece = {"input_ids": input_ids.clone(), "attention_mask": attention_mask.clone()}
            given: dict[str, Tensor] = self.model([piece])
            return given

    @property
    def dimension(self) -> int:
        """D."""
        return self.model.encoder.dimension

    @property
    def end(self) -> int | None:
        """See `Encoder`."""
        return self.model.encoder.end


class PlannedLoader(DataLoader[Drawn]):
    """A data loader whose batches the plan decides."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the plan's epoch."""
        plan = self.batch_sampler
        assert isinstance(plan, BatchPlan)
        plan.set_epoch(epoch)

    def __iter__(self) -> Any:
        """Start an epoch. The loader's processes do not hear Ctrl-C before they stand apart, see below."""
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Packing:
    """How the texts of a step are encoded.

    Attributes:
        tokens: Tokens of a piece at most, padding included.
        cached: The activations of one piece at a time are held (gradient caching).
    """

    tokens: int
    cached: bool

    def __str__(self) -> str:
        """For the user."""
        pieces = "in one piece" if self.tokens >= WHOLE else f"in pieces of {self.tokens:,} tokens"
        return f"{pieces}, {'with' if self.cached else 'without'} gradient caching"


WHOLE = 1 << 50
"""Tokens that no step has."""

AFTER = "what follows a step"


class StepTooLarge(Exception):
    """A process does not have the memory for a step, and all know.

    Args:
        here: It is this one.
    """

    def __init__(self, *, here: bool) -> None:
        super().__init__()
        self.here = here


STOPPING = (signal.SIGINT, signal.SIGTERM)


def stand_apart(_worker: int) -> None:
    """Make a loader's process ready.

    What is sent to the whole group, Ctrl-C of a terminal or a launcher's SIGTERM, is for the process that trains: it
    finishes its step, for which it needs the loader's processes. It ends them itself, and they end when it is gone.
    """
    # A forked process must not use the thread pool that its parent's tokenizer started.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


class EmbedderTrainer(Trainer):
    """Trainer of an embedder.

    Args:
        model: The encoder to train.
        args: transformers' own arguments.
        groups: Rows to groups.
        plan: Which rows make up which step.
        collator: Groups to tensors.
        objective: What the model gives to the loss.
        save_to: Writes the model into a folder, given its weights.
        cached: Hold the activations of one piece at a time (gradient caching).
        retries: Take a step that does not fit the memory once more in smaller pieces.
        may_cache: Smaller pieces may mean gradient caching.
        advice: What to change where the memory is full: a step's size, whether it is cached, and the part of the step.
        layer_decay: See `learning_rates`.
        fsdp: Cut the model over the processes.
    """

    def __init__(
        self,
        model: StepModel,
        args: TrainingArguments,
        *,
        groups: Groups,
        plan: BatchPlan,
        collator: Collator,
        objective: Objective,
        save_to: Callable[[Path, Mapping[str, Tensor]], None],
        cached: bool = False,
        retries: bool = False,
        may_cache: bool = True,
        advice: Callable[[StepSize, bool, str], str | None] = lambda size, cached, part: None,
        layer_decay: float = 1.0,
        fsdp: bool = False,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=groups, data_collator=collator)
        # Accumulated steps are averaged: our loss is a mean over queries, not a sum over tokens.
        self.model_accepts_loss_kwargs = False
        self.plan = plan
        self.objective = objective
        self.shown: dict[str, Tensor] = {}
        self.shown_steps = 0
        self.save_to = save_to
        self.packing = Packing(collator.piece_tokens, cached)
        self.retries = retries
        self.may_cache = may_cache
        self.advice = advice
        self.meter = meter_of(args.device)
        self.in_hand: dict[str, Any] = {}
        self.part = AFTER
        self.full_here = False
        self.accumulated: list[dict[str, Any]] = []
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self.examples_seen = 0
        self.tokens_seen = 0
        self.layer_decay = layer_decay
        self.fsdp = fsdp
        self.progress: Any = None
        self.checkpoints: Any = None
        self.stopping = Stopping()

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' optimiser, with a learning rate for each layer where they are to differ."""
        if self.fsdp:
            # The optimiser takes the weights as they are now, so they are cut first.
            names = set(getattr(self.model.encoder.backbone, "_no_split_modules", None) or ())
            shard(self.model, names, self.args.device, bf16=self.args.bf16)
        if self.layer_decay == 1.0:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        trained = model or self.model
        rates = learning_rates(trained, self.args.learning_rate, self.layer_decay)
        decayed = set(self.get_decay_parameter_names(trained))
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                weight_decay = self.args.weight_decay if name in decayed else 0.0
                groups.setdefault((rates[name], weight_decay), []).append(parameter)
        kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, trained)
        # The highest rate first: it is the one that is logged.
        ordered = sorted(groups.items(), key=lambda item: -item[0][0])
        self.optimizer = kind(
            [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in ordered],
            **arguments,
        )  # fmt: skip
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Drawn]:
        """The planned batches. Not handed to accelerate, which would deal them out to the ranks again."""
        workers = self.args.dataloader_num_workers
        return PlannedLoader(
            self.train_dataset,
            batch_sampler=self.plan,
            collate_fn=AsArrays(self.data_collator),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=stand_apart if workers else None,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one step, whole or in cached pieces.

        Returns:
            The loss of this process's queries over the number of accumulated steps, detached.

        Raises:
            RunError: The memory does not hold the step.
        """
        self.examples_seen += len(inputs["places"])
        self.tokens_seen += inputs["tokens"]
        model.train()
        loss = self._until_it_fits(model, inputs) if self.retries else self.attempt(model, [inputs])
        if loss is None:
            raise self.out_of_memory()
        self.part = AFTER
        return loss

    def attempt(self, model: nn.Module, steps: Sequence[dict[str, Any]]) -> Tensor | None:
        """Add the gradients of steps that are accumulated.

        With `retries`, all processes find together whether all of them had the memory.

        Args:
            model: The wrapped model.
            steps: What the loader gives.

        Returns:
            The loss of the last one; None where there was not enough memory, and gradients are then of no use.
        """
        loss = None
        try:
            for inputs in steps:
                loss = self._gradients(model, inputs)
        except StepTooLarge as problem:
            self.full_here = problem.here
            return None
        except (RuntimeError, MemoryError) as problem:
            if not is_full(problem):
                raise
            self.full_here, loss = True, None
        if loss is not None and self.retries and self.accelerator.gradient_state.sync_gradients:
            average_gradients(model.parameters())
        if loss is None and self.retries:
            # Where it is not agreed on, other processes are waiting in the middle of the step.
            raise self.out_of_memory()
        return loss

    def _gradients(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Add the gradients of one step; returns its loss."""
        self.in_hand = inputs
        step = as_tensors(inputs)
        if self.packing.tokens != self.data_collator.piece_tokens:
            step = replace(self.data_collator, piece_tokens=self.packing.tokens).cut_anew(step)
        step = self._prepare_inputs(step)
        pieces = self._level(step["pieces"])
        # Fewer than the option at the end of an epoch.
        accumulated = self.current_gradient_accumulation_steps

        def encode(chosen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            with self.compute_loss_context_manager():
                return model(chosen)

        def loss_of(outputs: dict[str, Tensor]) -> Tensor:
            return self._loss_of(outputs, step) / accumulated

        if self.retries:
            # Gradients are exchanged once all processes have theirs; see `attempt`.
            with self.accelerator.no_sync(model):
                if not self.packing.cached:
                    return parted_backward(encode, pieces, loss_of, self._backward_to_vectors, self._agreed)
                return cached_backward(
                    encode, [[piece] for piece in pieces], loss_of, self._backward_to_vectors, self._backward_piece,
                    around_part=self._agreed,
                )  # fmt: skip
        if self.packing.cached:
            return cached_backward(
                encode, [[piece] for piece in pieces], loss_of, self._backward_to_vectors, self._backward_piece,
                partial(self._around_piece, model), self._noted,
            )  # fmt: skip
        with self._noted(ENCODING):
            outputs = encode(pieces)
        with self._noted(LOSS):
            loss = loss_of(outputs)
        with self._noted(BACKWARD):
            self.accelerator.backward(loss, **self._unscaled)
        return loss.detach()

    def _until_it_fits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """`attempt`, in smaller pieces until the step fits; these are kept.

        Raises:
            RunError: There are no smaller pieces.
        """
        if not self.accumulated:
            self.begun = (RandomState(), self.shown, self.shown_steps)
        self.accumulated.append(inputs)
        before, todo = self.packing, self.accumulated[-1:]
        while (loss := self.attempt(model, todo)) is None:
            self._make_smaller()
            # Nothing is left of the gradients that earlier steps added, so these are taken once more.
            model.zero_grad()
            self.meter.forget()
            random, self.shown, self.shown_steps = self.begun
            random.restore()
            todo = self.accumulated
        if self.packing != before:
            console.warn(
                f"the memory did not hold step {self.state.global_step + 1}; it was taken once more, and all after it "
                f"are, {self.packing}"
            )
        if self.accelerator.gradient_state.sync_gradients:
            self.accumulated = []
        return loss

    def _make_smaller(self) -> None:
        """Choose how to take the step in hand once more; all processes choose the same.

        Raises:
            RunError: It could only be taken as it was.
        """
        smaller = self.smaller()
        if smaller is None:
            failures = gather_objects(self.out_of_memory() if self.full_here else None)
            raise next(failure for failure in failures if failure is not None)
        self.packing = smaller

    def smaller(self) -> Packing | None:
        """How the step in hand can be taken in less memory; None where it cannot. All processes call this together."""
        if not self.packing.cached and self.may_cache:
            return replace(self.packing, cached=True)
        texts, tokens = self._largest_piece()
        if largest(texts, self.args.device) == 1 or (self.part == LOSS and self.packing.cached):
            return None
        return replace(self.packing, tokens=largest(tokens, self.args.device) // 2)

    def _largest_piece(self) -> tuple[int, int]:
        """Texts of the piece of the step in hand that has most, and tokens of the one that has most."""
        pieces = pieces_of(self.in_hand["lengths"], self.packing.tokens, self.data_collator.piece_texts)
        return max(texts for texts, _ in pieces), max(texts * longest for texts, longest in pieces)

    def out_of_memory(self, of: str | None = None) -> RunError:
        """What to tell where the memory does not hold the step in hand; `of` says which one it is."""
        size = size_of(self.in_hand, self.packing.tokens, self.data_collator)
        who = f" (process {rank()} of {world()})" if world() > 1 else ""
        files = self.train_dataset.collection.names_of(self.in_hand["places"])
        return RunError(
            f"out of memory in {of or f'step {self.state.global_step + 1}'}, in {self.part}{who}: "
            f"{size.describe()} of {' and '.join(files)}; rows: {shortened(self.in_hand['places'])}",
            hint=self.advice(size, self.packing.cached, self.part),
        )

    @contextmanager
    def _noted(self, part: str) -> Iterator[None]:
        """Keep in mind what is being done."""
        self.part = part
        yield

    @contextmanager
    def _agreed(self, part: str) -> Iterator[None]:
        """Around a part of a step: when it ends, all processes learn whether it fitted into the memory of all.

        Raises:
            StepTooLarge: It did not.
        """
        self.part = part
        if part == LOSS and active() and self.objective.cross_device:
            # One that fails here leaves the others waiting for its vectors.
            yield
            return
        full = False
        try:
            yield
        except (RuntimeError, MemoryError) as problem:
            if not is_full(problem):
                raise
            full = True
        if largest(int(full), self.args.device):
            raise StepTooLarge(here=full)

    @property
    def sharded(self) -> bool:
        """Whether parts of the model lie on other processes, so that all must take the same number of forward calls."""
        return bool(self.is_deepspeed_enabled or self.fsdp)

    @property
    def _unscaled(self) -> dict[str, Any]:
        # DeepSpeed would divide by the accumulated steps once more.
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}

    def _level(self, pieces: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """As many pieces as the process with the most; those added are not looked at."""
        if not self.sharded:
            return pieces
        return pieces + pieces[-1:] * (largest(len(pieces), self.args.device) - len(pieces))

    def _backward_to_vectors(self, loss: Tensor) -> None:
        # DeepSpeed scales the loss of what is sent through its model, and these vectors are not.
        if self.is_deepspeed_enabled:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(loss)

    def _backward_piece(self, surrogate: Tensor) -> None:
        if self.is_deepspeed_enabled:
            self.accelerator.backward(surrogate, **self._unscaled)
        else:
            # The loss was scaled, so its gradient with regard to the vectors is.
            surrogate.backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def _around_piece(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients are averaged over the processes once, with the last piece of the last accumulated step."""
        state = self.accelerator.gradient_state
        boundary = state.sync_gradients
        if last:
            yield
        elif self.is_deepspeed_enabled:
            state._set_sync_gradients(False)
            try:
                yield
            finally:
                state._set_sync_gradients(boundary)
        else:
            with self.accelerator.no_sync(model):
                yield

    def _loss_of(self, outputs: dict[str, Tensor], inputs: dict[str, Any]) -> Tensor:
        loss, shown = self.objective(outputs, inputs, self.state.global_step)
        self.shown = {name: self.shown.get(name, 0) + value for name, value in shown.items()}
        self.shown_steps += 1
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}; "
                f"its rows: {shortened(inputs['places'])}",
                hint="lower --learning-rate, raise --temperature, or use --bf16 in place of --fp16",
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' log, and beside the loss what the objective shows, as the mean over steps and processes."""
        if "loss" in logs and self.shown:
            means = torch.stack(list(self.shown.values())).float() / self.shown_steps
            means = gather(means.unsqueeze(0)).sum(dim=0) / world()
            logs |= dict(zip(self.shown, means.tolist(), strict=True))
            self.shown, self.shown_steps = {}, 0
        super().log(logs, start_time)

    def weights(self) -> dict[str, Tensor]:
        """The weights, whole, in every process that holds some; all processes call this.

        The backbone's have the names they have in its files, the heads' those they have in the encoder. Where adapters
        are saved alone, they are those that are trained: the others are never gathered.
        """
        only = trained_names(self.model) if self.model.encoder.alone else None
        if not self.sharded:
            state = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        elif self.fsdp:
            state = whole_weights(self.model, frozen=only is None)
        elif only is not None and self.model_wrapped.zero_optimization_partition_weights():
            state = gathered_weights(self.model, only)
        else:
            state = self.accelerator.get_state_dict(self.model_wrapped) or {}
        if only is not None:
            state = {name: tensor for name, tensor in state.items() if name in only}
        named = {name.removeprefix(ENCODER): tensor for name, tensor in state.items() if name.startswith(ENCODER)}
        return {name.removeprefix(BACKBONE): tensor for name, tensor in named.items()}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model so that it can be opened by others, checkpoints included."""
        state = self.weights()
        if self.args.should_save:
            self.save_to(Path(output_dir or self.args.output_dir), state)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return (
            Sharded(model) if self.fsdp and training and not isinstance(model, Sharded) else super()._wrap_model(model)
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.fsdp:
            save_optimizer(self.model, self._plain_optimizer, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.fsdp or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.model, self._plain_optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    @property
    def _plain_optimizer(self) -> Any:
        """torch's optimiser within accelerate's."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """A checkpoint's weights are named as the backbone's are, not as this Trainer's model names them."""
        self.model.encoder.load(Path(resume_from_checkpoint))
