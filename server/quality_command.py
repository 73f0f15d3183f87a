"""``ridgeline quality``: what fewer bits cost the model at hand, measured on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.native.kernels.build import compiler_available
from engine.native.quality import ModelForm, full_precision, measure, windows
from engine.native.support import check_supported
from planner.candidates import compact_kv_dtypes, plain_kv_dtype
from planner.quality import bits_worth
from profiles.accelerator import AcceleratorProfile
from profiles.detect import detect_hardware
from profiles.model_spec import ModelSpec
from profiles.numerics import KV_TYPES, SCHEMES, check_kv_dtype, formats_of, runs
from profiles.quality import Quality, QualityStore, model_identity
from server.model_source import BUNDLED_MODEL_DIR, ModelSource, check_files, find_model
from server.tokenizer import Tokenizer
from server.trial import running

_ENGINE = "native"
_WINDOW = 256
"""Tokens of context that a piece of text has."""
_SAMPLE_TEXT = Path(__file__).with_name("sample_text.md")
"""What models are compared on unless the user has a text."""
_BUNDLED_TEXTS = BUNDLED_MODEL_DIR / "sample_texts.json"
"""Conversations as the bundled model was trained to hold, none of which it has seen."""
_CONCURRENCY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """``ridgeline quality`` as it was typed."""

    model: str | None = None
    schemes: tuple[str, ...] = ()
    kv_cache_dtypes: tuple[str, ...] = ()
    linear_kernel: str = "auto"
    text: Path | None = None
    num_tokens: int = 2048
    num_cases: int = 20
    as_json: bool = False


def run_quality(options: QualityOptions) -> None:
    """Measures, stores, prints.

    Raises:
        ValueError: the model cannot be run, a form is not there, the text cannot be used, or the
            results cannot be written; one line.
        WeightLoadingError: the weights are missing or broken.
    """
    source = find_model(options.model)
    spec = ModelSpec.from_directory(source.directory)
    check_files(source.directory)
    check_supported(spec)
    forms = _forms(spec, detect_hardware().cpu.group.profile, options)
    sequences = _sequences(source, spec, options)
    console = Console(stderr=True, highlight=False)
    results: dict[ModelForm, Quality] = {}
    with console.status("computing in full precision") as status:
        measured = measure(source.directory, forms, sequences)
        for form, quality in zip(forms, measured, strict=True):
            if source.directory == BUNDLED_MODEL_DIR and options.num_cases:
                status.update(f"asking {form.quantization} with {form.kv_cache_dtype} KV cache")
                quality = replace(quality, exact_match=_exact_match(form, options.num_cases))
            results[form] = quality
            status.update(f"measured {len(results)} of {len(forms)} forms")
    table = {(form.quantization, form.kv_cache_dtype): quality for form, quality in results.items()}
    path = QualityStore().add(model_identity(source.directory), source.name, table)
    if options.as_json:
        print(json.dumps(_to_mapping(source, results, path), indent=2))
        return
    printer = Console(highlight=False)
    printer.print(_table(source, results))
    printer.print(f"Written to {path}")


def _forms(
    spec: ModelSpec, profile: AcceleratorProfile, options: QualityOptions
) -> list[ModelForm]:
    """Every form that is asked for, on the processor.

    Raises:
        ValueError: one of them is not there.
    """
    if not compiler_available():
        raise ValueError(
            "there is nothing to compare without compiled kernels, and there is no C++ compiler: "
            "install g++, or name another one in $CXX"
        )
    formats = formats_of(_ENGINE)
    stored = full_precision(spec).quantization
    known = [name for name in SCHEMES if name in formats.online]
    if spec.quantization is not None:
        known = [stored]  # what came quantized stays so
    for name in options.schemes:
        if name not in known:
            raise ValueError(f"scheme {name!r} is not to be had (known: {', '.join(known)})")
    kv_known = [
        name for name in KV_TYPES if name != "auto" and runs(check_kv_dtype(name, profile, _ENGINE))
    ]
    for name in options.kv_cache_dtypes:
        if name not in kv_known:
            raise ValueError(f"KV cache {name!r} is not to be had (known: {', '.join(kv_known)})")
    kv_dtypes = options.kv_cache_dtypes or (
        plain_kv_dtype(spec, _ENGINE, profile.vendor),
        *(name for name in compact_kv_dtypes(_ENGINE) if name in kv_known),
    )
    pairs = product(dict.fromkeys(options.schemes or known), dict.fromkeys(kv_dtypes))
    return [ModelForm(scheme, kv_dtype, options.linear_kernel) for scheme, kv_dtype in pairs]


def _sequences(
    source: ModelSource, spec: ModelSpec, options: QualityOptions
) -> list[tuple[int, ...]]:
    """The text in tokens, in pieces.

    Raises:
        ValueError: it cannot be read or is too short.
    """
    tokenizer = Tokenizer.from_directory(source.directory)
    texts = [tokenizer.encode(text, add_special_tokens=True) for text in _texts(source, options)]
    length = min(_WINDOW, spec.max_model_len)
    found = windows(texts, length, options.num_tokens, spec.vocab_size)
    if not found:
        raise ValueError("the text is too short to compare anything: it needs two tokens")
    if any(token >= spec.vocab_size for piece in found for token in piece):
        raise ValueError("the tokenizer knows tokens that the model does not")
    return found


def _texts(source: ModelSource, options: QualityOptions) -> list[str]:
    if options.text is not None:
        try:
            return [options.text.read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {options.text}: {error}") from None
    if source.directory == BUNDLED_MODEL_DIR:
        texts: list[str] = json.loads(_BUNDLED_TEXTS.read_text(encoding="utf-8"))
        return texts
    return [_SAMPLE_TEXT.read_text(encoding="utf-8")]


def _exact_match(form: ModelForm, num_cases: int) -> float | None:
    """Of the bundled model's held-out evaluation over HTTP; None where it is not installed."""
    try:  # a part of the repository, not of the installed package
        from training.conversations import KINDS
        from training.evaluate import ask_server, load_cases, summarize
    except ImportError:
        return None
    flags = {
        "--quantization": form.quantization,
        "--kv-cache-dtype": form.kv_cache_dtype,
        "--linear-kernel": form.linear_kernel,
    }
    cases = load_cases(list(KINDS), num_cases)
    with running([part for flag in flags.items() for part in flag]) as base_url:
        outcomes = asyncio.run(
            ask_server(cases, f"{base_url}/v1/", model=None, api_key=None, concurrency=_CONCURRENCY)
        )
    return float(summarize(outcomes)["overall"]["exact_match"])


# ---------------------------------------------------------------------- what is printed


def _table(source: ModelSource, results: dict[ModelForm, Quality]) -> Table:
    positions = max(quality.num_positions for quality in results.values())
    table = Table(
        title=f"{source.name} against its full precision, {positions} positions",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    has_cases = any(quality.exact_match is not None for quality in results.values())
    table.add_column("weights")
    table.add_column("KV cache")
    for heading in _headings(has_cases):
        table.add_column(heading, justify="right")
    for form, quality in results.items():
        table.add_row(form.quantization, form.kv_cache_dtype, *_cells(quality, has_cases))
    return table


def _headings(has_cases: bool) -> Sequence[str]:
    last = ("exact match",) if has_cases else ()
    return ("mean KL", "worst KL", "same token", "perplexity", *last, "floor")


def _cells(quality: Quality, has_cases: bool) -> Iterator[str]:
    yield f"{quality.mean_kl:.1e}"
    yield f"{quality.max_kl:.1e}"
    yield f"{quality.same_token:.1%}"
    yield f"{quality.perplexity:.4g}"
    if has_cases:
        yield "" if quality.exact_match is None else f"{quality.exact_match:.1%}"
    bits = bits_worth(quality.mean_kl)
    yield "below 4 bits" if bits is None else f"{bits} bits"


def _to_mapping(
    source: ModelSource, results: dict[ModelForm, Quality], path: Path
) -> dict[str, object]:
    return {
        "model": source.name,
        "path": str(path),
        "forms": [
            {**asdict(form), **asdict(quality), "floor_bits": bits_worth(quality.mean_kl)}
            for form, quality in results.items()
        ],
    }
