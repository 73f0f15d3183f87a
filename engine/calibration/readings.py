"""What the measuring process is asked and what it answers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from profiles.numerics import SCHEMES

_TYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


class ModelOrder(msgspec.Struct, frozen=True):
    """A model whose steps are to be learned, and what holds its weights, keys and values."""

    directory: Path
    quantization: str
    """As in ``EngineConfig``, like the type of the cache."""
    kv_cache_dtype: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    device: str
    """``cpu`` or ``cuda``."""
    models: tuple[ModelOrder, ...]
    """On a CPU."""
    dtype: str
    """Type of activations, as in ``EngineConfig``."""
    products: tuple[str, ...]
    """Weights whose matrix products are measured: schemes, or types (``bf16``)."""
    kv_cache_dtypes: tuple[str, ...]
    """Types of keys and values whose attention is measured."""
    num_threads: int
    cpus: tuple[int, ...] = ()
    """The hardware thread that each thread is bound to, as in ``EngineConfig``."""
    memory_bytes: int
    """Memory that may be taken."""
    seconds: float
    """Time for everything together; models share what the device leaves."""
    attention_backend: str = "auto"


class Reading(msgspec.Struct, frozen=True):
    """The median of repeated measurements and their relative standard deviation."""

    median: float
    spread: float
    num_repeats: int

    def inverse(self, amount: float) -> Reading:
        """``amount`` per unit of this: a duration as a rate."""
        return Reading(amount / self.median, self.spread, self.num_repeats)

    def scaled(self, factor: float) -> Reading:
        return Reading(factor * self.median, self.spread, self.num_repeats)


class RowReading(msgspec.Struct, frozen=True):
    """Rate of matrix products with ``num_rows`` rows of activations, in operations per second."""

    num_rows: int
    flops: Reading


class AttentionReading(msgspec.Struct, frozen=True):
    """A run of the engine's attention alone: what it read and computed, and how long it took."""

    kv_bytes: float
    flops: float
    seconds: Reading


class AttentionReadings(msgspec.Struct, frozen=True):
    """Decoding is nearly all reading, a prompt nearly all computing."""

    decode: AttentionReading
    prefill: AttentionReading


class HostReading(msgspec.Struct, frozen=True):
    """Durations of steps of models too small to compute anything, in seconds."""

    num_layers: int
    num_sequences: int
    num_tokens: int
    seconds: Reading


class LinkReading(msgspec.Struct, frozen=True):
    """All-reduces between the first ``num_devices`` devices."""

    num_devices: int
    num_bytes: int
    seconds: Reading


class DeviceReadings(msgspec.Struct, frozen=True, kw_only=True):
    bandwidth: Reading
    """Bytes per second of the fastest reading kernel at any working set."""
    products: dict[str, tuple[RowReading, ...]]
    """By what the weights are held in, as ordered."""
    attention: dict[str, AttentionReadings]
    """By the type of keys and values."""
    host: tuple[HostReading, ...] = ()
    links: tuple[LinkReading, ...] = ()


class StepReading(msgspec.Struct, frozen=True):
    """A step of a model: ``(num_computed_tokens, num_tokens)`` of each sequence."""

    sequences: tuple[tuple[int, int], ...]
    num_sampled: int
    seconds: Reading


class ModelReadings(msgspec.Struct, frozen=True):
    order: ModelOrder
    layers: tuple[RowReading, ...]
    """Rate of the operations of all products, everything but attention included in the time."""
    head: tuple[RowReading, ...]
    steps: tuple[StepReading, ...]


class Readings(msgspec.Struct, frozen=True):
    """The answer."""

    device: DeviceReadings
    models: tuple[ModelReadings, ...]
    attention_backend: str
    seconds: float


class Progressed(msgspec.Struct, frozen=True, tag=True):
    """One line for people on what is being measured now."""

    text: str


class Finished(msgspec.Struct, frozen=True, tag=True):
    readings: Readings


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Nothing came of it; one line."""

    message: str


Message = Progressed | Finished | Failed


def encode(message: Message | Order) -> bytes:
    """JSON without a line break; paths travel as strings."""
    return msgspec.json.encode(message, enc_hook=str)


_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(
    Message, dec_hook=lambda kind, value: kind(value)
)


def decode_message(line: bytes) -> Message:
    return _messages.decode(line)


def decode_order(data: bytes) -> Order:
    return msgspec.json.decode(data, type=Order, dec_hook=lambda kind, value: kind(value))


def bytes_per_weight(name: str) -> float:
    """Of weights as ``Order.products`` names them."""
    return _TYPE_BYTES.get(name) or SCHEMES[name].bits_per_weight / 8
