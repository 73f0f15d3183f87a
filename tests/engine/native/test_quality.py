"""What fewer bits cost, and that it stays within the bounds that are stated for each scheme."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.native.linear.select import FP32_ACTIVATIONS, INT8_ACTIVATIONS
from engine.native.quality import ModelForm, full_precision, measure, windows
from planner.quality import MOST_KL
from profiles.model_spec import ModelSpec
from server.model_source import BUNDLED_MODEL_DIR
from server.tokenizer import Tokenizer
from tests.checkpoints import load_reference, make_checkpoint
from tests.quantized_checkpoints import FORMATS, make_quantized, quantize_checkpoint


@pytest.fixture(scope="module")
def conversations() -> list[tuple[int, ...]]:
    """About a thousand tokens that the bundled model knows how to continue."""
    texts = json.loads((BUNDLED_MODEL_DIR / "sample_texts.json").read_text())
    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL_DIR)
    found = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    return windows(found, 256, 1024, 1536)


# docs/performance.md, "Quality": the bounds of each scheme.
BOUNDS = {
    ("none", "bfloat16"): 0.0001,
    ("none", "int8"): 0.0005,
    ("int8", "bfloat16"): MOST_KL[8],
    ("int8", "int8"): MOST_KL[8],
    ("int8_g128", "bfloat16"): MOST_KL[8],
    ("fp8", "bfloat16"): MOST_KL[8],
    ("int4", "bfloat16"): MOST_KL[4],
    ("int4", "int8"): MOST_KL[4],
    ("int4_g128", "bfloat16"): MOST_KL[4],
}


@pytest.mark.parametrize("kernel", [INT8_ACTIVATIONS, FP32_ACTIVATIONS])
def test_schemes_keep_to_their_bounds(kernel: str, conversations: list[tuple[int, ...]]) -> None:
    forms = [
        ModelForm(*form, kernel if form[0] not in ("none", "fp8") else "auto") for form in BOUNDS
    ]
    found = list(measure(BUNDLED_MODEL_DIR, forms, conversations))
    for (form, bound), quality in zip(BOUNDS.items(), found, strict=True):
        assert 0 < quality.mean_kl < bound, form
        assert quality.mean_kl <= quality.max_kl
        assert quality.same_token > (0.85 if form[0].startswith("int4") else 0.97), form
        assert quality.num_positions == sum(map(len, conversations))
    # 4 bits cost more than 8, and those more than none.
    by_form = dict(zip(BOUNDS, found, strict=True))
    costs = [by_form[scheme, "bfloat16"].mean_kl for scheme in ("none", "int8", "int4")]
    assert costs == sorted(costs)


@pytest.mark.parametrize(("name", "bound"), [("awq", 1e-3), ("gptq-sym", 1e-3), ("ct-w8a8", 1e-3)])
def test_what_is_chosen_for_a_quantized_checkpoint_costs_little(
    name: str, bound: float, conversations: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Rounded activations and a 16-bit cache, beside the same checkpoint in full precision."""
    stored, _ = quantize_checkpoint(
        FORMATS[name], BUNDLED_MODEL_DIR, tmp_path / "stored", tmp_path / "meant"
    )
    scheme = full_precision(ModelSpec.from_directory(stored)).quantization
    form = ModelForm(scheme, "bfloat16", INT8_ACTIVATIONS)
    (quality,) = measure(stored, [form], conversations)
    assert 0 < quality.mean_kl < bound


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    tokens = tuple(range(5, 45))
    (quality,) = measure(directory, [ModelForm("none", "float32")], [tokens])
    ids = torch.tensor([tokens])
    with torch.no_grad():
        loss = load_reference(directory)(ids, labels=ids).loss
    assert quality.perplexity == pytest.approx(float(loss.exp()), rel=1e-3)
    assert (quality.mean_kl, quality.same_token) == (pytest.approx(0, abs=1e-5), 1)


def test_a_quantized_checkpoint_is_its_own_reference(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["fp8-block"], tmp_path)
    reference = full_precision(ModelSpec.from_directory(stored))
    assert reference == ModelForm("fp8", "float32", FP32_ACTIVATIONS)
    (same, other) = measure(stored, [reference, ModelForm("fp8", "int8")], [tuple(range(3, 60))])
    assert same.mean_kl == 0
    assert 0 < other.mean_kl < 0.01


def test_texts_are_cut_into_pieces_within_bounds() -> None:
    texts = [tuple(range(10)), tuple(range(100, 105)), (7,)]
    assert windows(texts, 4, 100, 50) == [
        (0, 1, 2, 3),
        (4, 5, 6, 7),
        (8, 9),
        (100, 101, 102, 103),
    ]
    assert windows(texts, 4, 6, 50) == [(0, 1, 2, 3), (4, 5)]
    assert windows(texts, 8, 100, 2**30 // 4 // 5) == [(0, 1, 2, 3, 4)]  # memory for 5 rows
    assert windows([(1,)], 4, 100, 50) == []
