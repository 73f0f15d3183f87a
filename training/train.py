"""Train the bundled model from nothing but a seed: `python -m training.train`."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from training.conversations import training_conversation
from training.model import ModelConfig, Qwen3ForTraining, save_config, save_weights
from training.tokenizer import ChatTemplate, Encoder, save_tokenizer, train_tokenizer

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "server" / "bundled_model"
TOKENIZER_SAMPLE = 30_000
LONGEST = 1200
PADDED_TO = 8
MICRO_BATCH_TOKENS = 2048
ENOUGH_TOKENS = 512  # a smaller micro-batch costs more in calls than padding costs


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the weights, apart from rounding."""

    seed: int = 1
    steps: int = 3600
    conversations_per_step: int = 96
    matrix_lr: float = 4e-3
    vector_lr: float = 4e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    decay_from: float = 0.3
    gradient_clip: float = 1.0

    def lr_factor(self, step: int) -> float:
        """Linear warmup, a constant stretch, then a linear decay to zero."""
        done = step / self.steps
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return min(1.0, (1.0 - done) / (1.0 - self.decay_from))


Example = tuple[list[int], list[bool]]


def draw_examples(rng: random.Random, encoder: Encoder, count: int) -> list[Example]:
    """Encoded training conversations, none longer than the longest the model is trained on."""
    examples: list[Example] = []
    while len(examples) < count:
        example = encoder.encode(training_conversation(rng))
        if len(example[0]) <= LONGEST:
            examples.append(example)
    return examples


def micro_batches(examples: list[Example], pad_id: int) -> list[tuple[Tensor, Tensor]]:
    """Right-padded (tokens, targets) of examples of like length; target -100 is no target."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda one: -len(one[0])):
        longest = len(batches[-1][0][0]) if batches else 0
        padded = (len(batches[-1]) + 1) * longest if batches else 0
        shrunk = len(example[0]) < 0.8 * longest and padded > ENOUGH_TOKENS
        if not batches or padded > MICRO_BATCH_TOKENS or shrunk:
            batches.append([])
        batches[-1].append(example)
    result = []
    for batch in batches:
        length = math.ceil((len(batch[0][0]) - 1) / PADDED_TO) * PADDED_TO
        tokens = torch.full((len(batch), length), pad_id)
        targets = torch.full((len(batch), length), -100)
        for row, (ids, learned) in enumerate(batch):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            wanted = [token if mark else -100 for token, mark in zip(ids, learned, strict=True)]
            targets[row, : len(ids) - 1] = torch.tensor(wanted[1:])
        result.append((tokens, targets))
    return result


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes that share each step; every one holds the whole model."""

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def owner(self, index: int) -> int:
        """The worker that updates the parameter of this index."""
        return index % self.count


def make_optimizers(
    matrices: Sequence[Tensor], others: Sequence[Tensor], recipe: Recipe, workers: Workers
) -> list[torch.optim.Optimizer]:
    """Muon for this worker's matrices inside the layers; AdamW for embeddings and norms."""
    own = [p for i, p in enumerate(matrices) if workers.owner(i) == workers.rank]
    muon = torch.optim.Muon(
        own,
        lr=recipe.matrix_lr,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(others, lr=recipe.vector_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


def compute_gradients(
    model: Qwen3ForTraining,
    batches: list[tuple[Tensor, Tensor]],
    workers: Workers,
    *,
    bf16: bool,
) -> tuple[float, int]:
    """Leave the gradients of the mean loss in the parameters; returns the loss and its tokens.

    Each worker computes every so manieth micro-batch on one thread, then all are added up: at
    these sizes that is faster than threads inside each operation, and does not suffer from a busy
    machine. Sums are taken in a fixed order, so that a run can be repeated.
    """
    learned = sum(int((targets != -100).sum()) for _, targets in batches)
    parameters = list(model.parameters())
    sums = torch.zeros(1 + sum(p.numel() for p in parameters))
    for batch in batches[workers.rank :: workers.count]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = model(*batch) / learned
        gradients = torch.autograd.grad(loss, parameters)
        sums[0] += loss.detach()
        sums[1:] += torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(sums)
    parts = torch.split(sums[1:], [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return float(sums[0]), learned


def update(
    optimizers: list[torch.optim.Optimizer], matrices: Sequence[Tensor], workers: Workers
) -> None:
    """One optimizer step; each matrix then comes from the worker that updated it."""
    for optimizer in optimizers:
        optimizer.step()
    handles = [
        distributed.broadcast(matrix.data, workers.owner(i), async_op=True)
        for i, matrix in enumerate(matrices)
    ]
    for handle in handles:
        if handle is not None:
            handle.wait()


def train(
    recipe: Recipe,
    encoder: Encoder,
    config: ModelConfig,
    workers: Workers,
    *,
    bf16: bool,
    compiled: bool,
    scratch: Path,
    minutes: float,
) -> Qwen3ForTraining:
    """Run the recipe; the first worker leaves a checkpoint in `scratch` every `minutes`."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForTraining(config)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizers = make_optimizers(matrices, others, recipe, workers)
    if compiled:
        model.compile_layers()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    base_lrs = [group["lr"] for group in groups]
    rng = random.Random(f"train:{recipe.seed}")
    started = saved = time.monotonic()
    seen = learned_total = 0
    for step in range(recipe.steps):
        factor = recipe.lr_factor(step)
        for group, base in zip(groups, base_lrs, strict=True):
            group["lr"] = base * factor
        # Every worker draws the same examples and takes its share of the micro-batches.
        examples = draw_examples(rng, encoder, recipe.conversations_per_step)
        batches = micro_batches(examples, encoder.pad_id)
        loss, learned = compute_gradients(model, batches, workers, bf16=bf16)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        update(optimizers, matrices, workers)
        seen += sum(len(ids) for ids, _ in examples)
        learned_total += learned
        if workers.is_first and (step % 25 == 0 or step + 1 == recipe.steps):
            spent = time.monotonic() - started
            print(
                f"step {step:5d}  loss {loss:.4f}  lr {factor:.3f}  tokens {seen:,} "
                f"(learned {learned_total:,})  {seen / spent:,.0f} tokens/s  {spent / 60:.1f} min",
                flush=True,
            )
        if workers.is_first and time.monotonic() - saved > 60 * minutes:
            saved = time.monotonic()
            write_model(model, encoder, scratch)
    return model


def write_model(model: Qwen3ForTraining, encoder: Encoder, directory: Path) -> None:
    """Write all files of the model beside `directory`, then move them into it one by one."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(model, partial / "model.safetensors")
    save_config(
        model.config,
        partial / "config.json",
        eos_token_id=encoder.end_id,
        pad_token_id=encoder.pad_id,
    )
    save_tokenizer(encoder.tokenizer, partial, model.config.max_position_embeddings)
    directory.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        os.replace(file, directory / file.name)
    partial.rmdir()
    (directory / "model.safetensors").chmod(0o644)


def make_encoder(seed: int, vocab_size: int) -> Encoder:
    """Train the tokenizer on conversations of its own random stream."""
    rng = random.Random(f"tokenizer:{seed}")
    template = ChatTemplate()
    texts = (
        template.render(conversation.messages, conversation.tools)
        for conversation in (training_conversation(rng) for _ in range(TOKENIZER_SAMPLE))
    )
    return Encoder(train_tokenizer(texts, vocab_size))


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/ridgeline-training"))
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="auto: with a C++ compiler"
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0)
    return parser.parse_args(arguments)


def run_worker(rank: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One of the processes: tokenizer, training, and from the first one the result."""
    torch.set_num_threads(1)
    workers = Workers(rank, options.workers)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=options.workers
    )
    bf16 = options.dtype == "bf16" or (options.dtype == "auto" and has_fast_bf16())
    compiled = options.compile == "on" or (
        options.compile == "auto" and shutil.which("g++") is not None
    )
    recipe, config = Recipe(seed=options.seed, steps=options.steps), ModelConfig()
    encoder = make_encoder(recipe.seed, config.vocab_size)
    if workers.is_first:
        facts = {"recipe": asdict(recipe), "model": asdict(config), "bf16": bf16}
        print(json.dumps(facts | {"compiled": compiled}), flush=True)
    model = train(
        recipe,
        encoder,
        config,
        workers,
        bf16=bf16,
        compiled=compiled,
        scratch=options.scratch / "checkpoint",
        minutes=options.checkpoint_minutes,
    )
    if workers.is_first:
        write_model(model, encoder, options.output)
    distributed.destroy_process_group()


def main(arguments: list[str]) -> None:
    """Start the workers and wait for them."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"{directory}/rendezvous"
        spawn(run_worker, (options, rendezvous), nprocs=options.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1:])
