"""Train the bundled model from nothing but a seed: `python -m training.train`."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

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
    steps: int = 1900
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


def make_optimizers(
    model: Qwen3ForTraining, recipe: Recipe, workers: int
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, one per worker; AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muons = [
        torch.optim.Muon(
            matrices[i::workers],
            lr=recipe.matrix_lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        for i in range(workers)
    ]
    adamw = torch.optim.AdamW(others, lr=recipe.vector_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [*muons, adamw]


def accumulate_gradients(
    model: Qwen3ForTraining,
    batches: list[tuple[Tensor, Tensor]],
    pool: ThreadPoolExecutor,
    *,
    bf16: bool,
) -> tuple[float, int]:
    """Leave the gradients of the mean loss in the parameters; returns the loss and its tokens.

    Each micro-batch is computed by one thread of the pool, and the sums are taken in the order of
    the micro-batches: that is faster than threads inside each operation at these sizes, does not
    suffer from a busy machine, and gives the same sums on every run.
    """
    learned = sum(int((targets != -100).sum()) for _, targets in batches)
    parameters = list(model.parameters())

    def work(batch: tuple[Tensor, Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = model(*batch) / learned
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    total = 0.0
    for loss, gradients in pool.map(work, batches):
        total += loss
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
    return total, learned


def train(
    recipe: Recipe,
    encoder: Encoder,
    config: ModelConfig,
    *,
    bf16: bool,
    threads: int,
    scratch: Path,
    minutes: float,
) -> Qwen3ForTraining:
    """Run the recipe; a checkpoint is left in `scratch` every `minutes`."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForTraining(config)
    optimizers = make_optimizers(model, recipe, threads)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    base_lrs = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    rng = random.Random(f"train:{recipe.seed}")
    started = saved = time.monotonic()
    seen = learned_total = 0
    for step in range(recipe.steps):
        factor = recipe.lr_factor(step)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, base in zip(groups, base_lrs, strict=True):
            group["lr"] = base * factor
        examples = draw_examples(rng, encoder, recipe.conversations_per_step)
        batches = micro_batches(examples, encoder.pad_id)
        loss, learned = accumulate_gradients(model, batches, pool, bf16=bf16)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        list(pool.map(lambda optimizer: optimizer.step(), optimizers))
        model.zero_grad()
        seen += sum(len(ids) for ids, _ in examples)
        learned_total += learned
        if step % 25 == 0 or step + 1 == recipe.steps:
            spent = time.monotonic() - started
            print(
                f"step {step:5d}  loss {loss:.4f}  lr {factor:.3f}  tokens {seen:,} "
                f"(learned {learned_total:,})  {seen / spent:,.0f} tokens/s  {spent / 60:.1f} min",
                flush=True,
            )
        if time.monotonic() - saved > 60 * minutes:
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Tokenizer, training, result."""
    options = parse(arguments)
    torch.set_num_threads(1)
    bf16 = options.dtype == "bf16" or (options.dtype == "auto" and has_fast_bf16())
    recipe, config = Recipe(seed=options.seed, steps=options.steps), ModelConfig()
    encoder = make_encoder(recipe.seed, config.vocab_size)
    print(json.dumps({"recipe": asdict(recipe), "model": asdict(config), "bf16": bf16}), flush=True)
    model = train(
        recipe,
        encoder,
        config,
        bf16=bf16,
        threads=options.threads,
        scratch=options.scratch / "checkpoint",
        minutes=options.checkpoint_minutes,
    )
    write_model(model, encoder, options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
