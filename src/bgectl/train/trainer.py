"""transformers' Trainer with our batches, our loss and our folder layout; everything else is its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from bgectl.errors import RunError
from bgectl.gradcache import cached_backward
from bgectl.losses.embedding import EmbeddingLoss
from bgectl.models.encoder import Encoder
from bgectl.train.batches import BatchPlan
from bgectl.train.collate import AsArrays, Collator, Drawn, Groups, as_tensors


class StepModel(nn.Module):
    """The encoder over the pieces of a step; one forward call holds them all, as DDP wants it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pieces: list[dict[str, Tensor]]) -> Tensor:
        """The vectors of all pieces, (ΣN, D), in the pieces' order."""
        return torch.cat([self.encoder(**piece) for piece in pieces])


class PlannedLoader(DataLoader[Drawn]):
    """A data loader whose batches the plan decides."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the plan's epoch."""
        plan = self.batch_sampler
        assert isinstance(plan, BatchPlan)
        plan.set_epoch(epoch)

    def __iter__(self) -> Any:
        """The steps of an epoch, as tensors."""
        return map(as_tensors, self._started())

    def _started(self) -> Any:
        """Start an epoch. Ctrl-C is this process's business; the loader's processes inherit that they do not hear it,
        or each would write a traceback.
        """
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def one_thread_tokenizer(_worker: int) -> None:
    """A forked process must not use the thread pool that its parent's tokenizer started."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class EmbedderTrainer(Trainer):
    """Trainer of an embedder.

    Args:
        model: The encoder to train.
        args: transformers' own arguments.
        groups: Rows to groups.
        plan: Which rows make up which step.
        collator: Groups to tensors.
        loss: Vectors to the loss.
        save_to: Writes the model into a folder.
        cached: Hold the activations of one piece at a time (gradient caching).
        callbacks: Passed on.
    """

    def __init__(
        self,
        model: StepModel,
        args: TrainingArguments,
        *,
        groups: Groups,
        plan: BatchPlan,
        collator: Collator,
        loss: EmbeddingLoss,
        save_to: Callable[[Path], None],
        cached: bool = False,
        callbacks: list[Any] | None = None,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=groups, data_collator=collator, callbacks=callbacks)
        # Accumulated steps are averaged: our loss is a mean over queries, not a sum over tokens.
        self.model_accepts_loss_kwargs = False
        self.plan = plan
        self.loss = loss
        self.save_to = save_to
        self.cached = cached
        self.examples_seen = 0
        self.tokens_seen = 0
        self.progress: Any = None

    def get_train_dataloader(self) -> DataLoader[Drawn]:
        """The planned batches. Not handed to accelerate, which would deal them out to the ranks again."""
        workers = self.args.dataloader_num_workers
        return PlannedLoader(
            self.train_dataset,
            batch_sampler=self.plan,
            collate_fn=AsArrays(self.data_collator),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=one_thread_tokenizer if workers else None,
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of one step with its graph."""
        return self._loss_of(model(inputs["pieces"]), inputs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one step, whole or in cached pieces."""
        self.examples_seen += len(inputs["places"])
        self.tokens_seen += inputs["tokens"]
        if not self.cached:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        # Fewer than the option at the end of an epoch.
        accumulated = self.current_gradient_accumulation_steps

        def encode(piece: dict[str, Tensor]) -> Tensor:
            with self.compute_loss_context_manager():
                return model([piece])

        return cached_backward(
            encode,
            inputs["pieces"],
            lambda vectors: self._loss_of(vectors, inputs) / accumulated,
            self.accelerator.backward,
        )

    def _loss_of(self, vectors: Tensor, inputs: dict[str, Any]) -> Tensor:
        texts = vectors[inputs["order"]]
        queries = len(inputs["places"])
        loss = self.loss(
            texts[:queries], texts[queries:], inputs["group_size"],
            blocked_BN=inputs["blocked"], teacher_BG=inputs["teacher"],
        )  # fmt: skip
        if not torch.isfinite(loss):
            places = ", ".join(inputs["places"][:8]) + (", …" if queries > 8 else "")
            raise RunError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}; its rows: {places}",
                hint="lower --learning-rate, raise --temperature, or use --bf16 in place of --fp16",
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model so that it can be opened by others, checkpoints included."""
        self.save_to(Path(output_dir or self.args.output_dir))
