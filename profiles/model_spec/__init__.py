"""The facts of a model: sizes, tensors, bytes and operations, from its ``config.json`` alone."""

from profiles.model_spec.checkpoint import StoredTensor, read_stored_tensors
from profiles.model_spec.fields import ModelSpecError
from profiles.model_spec.layers import AttentionKind, AttentionSpec, LayerSpec, MlpSpec
from profiles.model_spec.quantization import CheckpointQuantization, QuantizationScheme
from profiles.model_spec.rope import RopeConfig, RopeType
from profiles.model_spec.spec import SUPPORTED_ARCHITECTURES, ModelSpec
from profiles.model_spec.tensors import Tensor, TensorRole

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "AttentionKind",
    "AttentionSpec",
    "CheckpointQuantization",
    "LayerSpec",
    "MlpSpec",
    "ModelSpec",
    "ModelSpecError",
    "QuantizationScheme",
    "RopeConfig",
    "RopeType",
    "StoredTensor",
    "Tensor",
    "TensorRole",
    "read_stored_tensors",
]
