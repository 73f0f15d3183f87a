"""Fills a model with the weights of a safetensors checkpoint, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import nn

from engine.native.checkpoint_names import Index, Piece, pieces_of
from engine.native.parameter import ModelParameter, StoredTensor
from engine.native.quantization import QuantizationHandler
from engine.native.quantization.assembly import WeightAssembly
from profiles.model_spec import ModelSpecError
from profiles.model_spec.checkpoint import read_stored_tensors

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PACKED_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}
"""Of tensors that a quantized weight is made of, or that no parameter is filled from."""


class WeightLoadingError(RuntimeError):
    """Weights that are missing, broken or not the model's; one line naming file and tensor."""


def stored_dtype(directory: Path) -> torch.dtype:
    """The type that the checkpoint's matrices are stored in; the widest where they differ.

    Raises:
        WeightLoadingError: there are no weights, or a file is not complete.
    """
    try:
        tensors = read_stored_tensors(directory)
    except ModelSpecError as error:
        raise WeightLoadingError(str(error)) from None
    if tensors is None:
        _files(directory)  # says what is missing
    found = {tensor.dtype for tensor in tensors or () if len(tensor.shape) > 1}
    types = {_DTYPES[name] for name in found if name in _DTYPES}
    # Neither 16-bit type holds the other's numbers.
    return types.pop() if len(types) == 1 else torch.float32


def load_weights(
    model: nn.Module,
    directory: Path,
    handler: QuantizationHandler | None = None,
    *,
    show_progress: bool = False,
) -> None:
    """Reads every parameter of ``model`` from the checkpoint in ``directory``.

    Files are mapped, and of one tensor at a time what this rank holds is copied to its place in the
    type of the model's parameters: nothing else is read, and memory peaks at the model plus the
    mapped pages of one file. With the ``handler`` of a quantized checkpoint it is one module at a
    time, whose tensors are read whole, brought together and then sliced.

    Raises:
        WeightLoadingError: a file or a tensor is missing, broken, of another shape, not floating
            point, or unknown to the model.
    """
    wanted = _wanted_tensors(model)
    elsewhere = _modules_elsewhere(model)
    missing = set(wanted)
    files = _files(directory)
    total = sum(path.stat().st_size for path in files)
    assembly = WeightAssembly(handler, (name for path in files for name, _ in _tensors(path)))
    with _progress_bar(show_progress, total) as progress:
        for path in files:
            for part, slices in _tensors(path):
                progress(slices.nbytes)
                if _is_within(part, elsewhere):
                    continue
                whole = _add(path, assembly, part, slices)
                if whole is None:
                    continue
                name, stored = whole
                # What was brought together has no name in the file.
                shown = slices.name if stored is slices else name
                if name in wanted:
                    _load(path, shown, stored, *wanted[name])
                    missing.discard(name)
                elif not (_is_harmless(name) or assembly.does_without(name, stored)):
                    raise WeightLoadingError(
                        f"{path.name} holds {shown}, which a model of this config.json has no use "
                        "for"
                    )
    if missing:
        first = min(missing)
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightLoadingError(f"{directory} lacks the tensor {first}{others}")


def _wanted_tensors(model: nn.Module) -> dict[str, tuple[ModelParameter, str]]:
    """Which parameter, and which part of it, each tensor of the checkpoint fills, by name."""
    wanted: dict[str, tuple[ModelParameter, str]] = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, ModelParameter)
        if not parameter.parts:
            wanted[name] = (parameter, "")
            continue
        # model.layers.0.self_attn.qkv_proj.weight is stored as …q_proj.weight, …k_proj.weight, …
        prefix, _, kind = name.rsplit(".", 2)
        for part in parameter.parts:
            wanted[f"{prefix}.{part}.{kind}"] = (parameter, part)
    return wanted


def _modules_elsewhere(model: nn.Module) -> set[str]:
    """Names of the modules that only other ranks hold, as their parents say."""
    return {
        f"{parent}.{name}"
        for parent, module in model.named_modules()
        for name in getattr(module, "elsewhere", ())
    }


def _is_within(name: str, modules: set[str]) -> bool:
    """Whether a tensor belongs to one of these modules."""
    return any(name[: dot.start()] in modules for dot in re.finditer(r"\.", name))


def _is_harmless(name: str) -> bool:
    """Tensors that some checkpoints carry although they follow from the configuration.

    An output head is only unknown to a model that ties it to its embedding.
    """
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _files(directory: Path) -> list[Path]:
    index = directory / _INDEX_FILE
    single = directory / _SINGLE_FILE
    if not index.exists():
        if not single.exists():
            raise WeightLoadingError(
                f"no weights in {directory}: {_SINGLE_FILE} or {_INDEX_FILE} is needed"
            )
        return [single]
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        paths = [directory / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightLoadingError(
            f"{index} is not an index of safetensors files: {type(error).__name__}: {error}"
        ) from None
    for path in paths:
        if not path.is_file():
            raise WeightLoadingError(f"{index.name} names {path.name}, which is missing")
    return paths


class _StoredSlices:
    """A tensor of an open safetensors file, or a piece of one, read slice by slice."""

    def __init__(self, name: str, slices: Any, piece: Piece) -> None:
        self._slices = slices
        self._piece = piece
        self.name = name if piece.rows is None else piece.name
        dtype_name: str = slices.get_dtype()
        found = (_DTYPES | _PACKED_DTYPES).get(dtype_name)
        if found is None:
            raise WeightLoadingError(f"{name} is stored as {dtype_name}, which is not supported")
        self.dtype = found
        shape = tuple(slices.get_shape())
        if piece.rows is not None:
            _, first, end = piece.rows
            shape = (end - first, shape[-1])
        self.shape: tuple[int, ...] = shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Index) -> torch.Tensor:
        tensor: torch.Tensor = self._slices[self._piece.within(index)]
        return tensor if self._piece.rows is None else tensor[0]


def _tensors(path: Path) -> Iterator[tuple[str, _StoredSlices]]:
    """The model's tensors that a file holds, by the model's names; those of a module together."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in sorted(file.keys()):
                slices = file.get_slice(name)
                for piece in pieces_of(name, slices.get_shape()):
                    yield piece.name, _StoredSlices(name, slices, piece)
    except (SafetensorError, OSError) as error:
        raise WeightLoadingError(
            f"{path} is not a complete safetensors file: {_one_line(error)}"
        ) from None


def _add(
    path: Path, assembly: WeightAssembly, name: str, stored: StoredTensor
) -> tuple[str, StoredTensor] | None:
    try:
        return assembly.add(name, stored)
    except ValueError as error:
        raise WeightLoadingError(f"{path.name}: {error}") from None


def _load(
    path: Path, name: str, stored: StoredTensor, parameter: ModelParameter, part: str
) -> None:
    if stored.dtype not in _DTYPES.values():
        found = next(key for key, dtype in _PACKED_DTYPES.items() if dtype is stored.dtype)
        raise WeightLoadingError(
            f"{name} in {path.name} is stored as {found} (supported: {', '.join(_DTYPES)})"
        )
    try:
        parameter.weight_loader(parameter, stored, part)
    except ValueError as error:
        raise WeightLoadingError(f"{name} in {path.name} {error}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _progress_bar(show: bool, total_bytes: int) -> Iterator[Any]:
    """A function that takes the bytes just read; the bar is drawn on a terminal only."""
    if not show:
        yield lambda num_bytes: None
        return
    columns = (TextColumn("Loading weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("weights", total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)
