"""While weights are loaded there are never two copies of them in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from profiles.model_spec import ModelSpec
from tests.checkpoints import make_checkpoint
from tests.quantized_checkpoints import FORMATS, quantize_checkpoint

MIB = 2**20
SLACK = 12 * MIB
"""Of allocators and of what python itself needs meanwhile."""

# Peaks are read from the system, which counts mapped pages of the checkpoint's files too; it can
# be told to forget the peak so far (proc(5), clear_refs).
MEASURE = """
import json, pathlib, sys
import torch
from engine.native.linear.compiled import PackedParameter
from engine.native.linear.select import FP32_ACTIVATIONS, choose_linear_kernels
from engine.native.loader import load_weights, stored_dtype
from engine.native.models import build_model
from engine.native.quantization import handler_for
from profiles.model_spec import ModelSpec

def resident(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

directory, scheme = pathlib.Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
spec = ModelSpec.from_directory(directory)
asked = FP32_ACTIVATIONS if scheme != "none" else "auto"
kernels = choose_linear_kernels(spec, scheme, stored_dtype(directory), torch.float32, asked)
model = build_model(spec, 64, kernels, torch.float32)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
handler = None if spec.quantization is None else handler_for(spec.quantization)
load_weights(model, directory, handler)
held = 0
for parameter in model.parameters():
    if isinstance(parameter, PackedParameter):
        matrix = parameter.matrix
        held += matrix.weights.nbytes + matrix.scales.nbytes
        held += 0 if matrix.zeros is None else matrix.zeros.nbytes
    else:
        held += parameter.nbytes
print(json.dumps({"peak": resident("VmHWM") - before, "held": held}))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 130 MiB in bfloat16, in files of 16."""
    return make_checkpoint(
        "llama",
        tmp_path_factory.mktemp("large"),
        dtype=torch.bfloat16,
        max_shard_size="16MB",
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        vocab_size=8192,
    )


def loaded(directory: Path, scheme: str) -> dict[str, int]:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory), scheme],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[str, int] = json.loads(result.stdout)
    return found


def largest_file(directory: Path) -> int:
    return max(path.stat().st_size for path in directory.glob("*.safetensors"))


def test_quantizing_while_loading_takes_one_file_more(checkpoint: Path) -> None:
    shard = largest_file(checkpoint)
    total = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert shard < total / 6
    for scheme, bits in (("int8", 8), ("int4", 5.2)):
        found = loaded(checkpoint, scheme)
        assert found["held"] < total * bits / 16 * 1.02
        # The quantized size and one file of the checkpoint: far from the checkpoint beside it.
        assert found["peak"] < found["held"] + shard + SLACK < total


@pytest.mark.parametrize("name", ["awq", "gptq-sym", "fp8-block", "ct-int4-asym-g32"])
def test_a_quantized_checkpoint_is_unpacked_matrix_by_matrix(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    stored, meant = tmp_path / "stored", tmp_path / "meant"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "whole", max_shard_size="1GB")
    quantize_checkpoint(FORMATS[name], tmp_path / "whole", stored, meant)
    spec = ModelSpec.from_directory(stored)
    assert spec.quantization is not None
    found = loaded(stored, spec.quantization.scheme.value)
    # Unpacked, a matrix has a byte for each weight, and while its bits are sorted a few more: far
    # from the 54 MiB that all of them would take.
    largest = 10 * 768 * 2048
    assert found["peak"] < found["held"] + largest_file(stored) + largest + SLACK
