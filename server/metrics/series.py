"""Every series that ``/metrics`` shows: its name, type, labels and boundaries, in one place.

Only data: documentation, tests and dashboards are made from it. ``vllm:`` series have vLLM's names,
types, labels and boundaries (``vllm/v1/metrics``), so that what was made for them reads this server
too; ``gen_ai_`` ones are OpenTelemetry's of a GenAI server, named as its rules for Prometheus say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.step_totals import (
    ERROR_RATIOS,
    HOST_SECONDS,
    ITERATION_TOKENS,
    POWERS_OF_TWO,
    ROOF_SHARES,
    STEP_SECONDS,
)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """A family of samples. A counter's sample is called ``name`` and ``_total``."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    """Beside those that every series of its prefix has (``common_labels``)."""
    buckets: tuple[float, ...] = ()
    ends_at_max_model_len: bool = False
    """Whether boundaries above the longest sequence are left out."""
    when: str = ""
    """Where it is to be had, if not everywhere."""

    @property
    def all_labels(self) -> tuple[str, ...]:
        return (*common_labels(self.name), *self.labels)


def common_labels(name: str) -> tuple[str, ...]:
    if name in _WITHOUT_COMMON_LABELS or name.startswith("gen_ai_"):
        return ()
    if name.startswith("vllm:") and name != "vllm:admission_rejections":
        return ("model_name", "engine")
    return ("model_name",)


_WITHOUT_COMMON_LABELS = frozenset({"vllm:cache_config_info", "ridgeline_build_info"})

# vLLM's boundaries (``vllm/v1/metrics/buckets.py``).
TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(float(m * 10**e) for e in range(9) for m in (1, 2, 5))
PARAMS_N = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
# OpenTelemetry's, of the semantic conventions for generative AI metrics.
OTEL_DURATION = tuple(0.01 * 2**exponent for exponent in range(14))
OTEL_TPOT = ITL[: ITL.index(2.5) + 1]
OTEL_TTFT = TTFT[: TTFT.index(10.0) + 1]


def _counter(name: str, text: str, *labels: str, when: str = "") -> Series:
    return Series(name, Kind.COUNTER, text, labels, when=when)


def _gauge(name: str, text: str, *labels: str, when: str = "") -> Series:
    return Series(name, Kind.GAUGE, text, labels, when=when)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Series:
    return Series(name, Kind.HISTOGRAM, text, labels, buckets)


def _tokens(name: str, text: str) -> Series:
    return Series(name, Kind.HISTOGRAM, text, (), TOKENS, ends_at_max_model_len=True)


REQUESTS = (
    _counter("ridgeline_requests", "Requests for generation, by outcome", "endpoint", "outcome"),
    _counter("ridgeline_request_failures", "Answers that are errors", "code", "reason"),
    _counter("ridgeline_client_disconnects", "Requests whose client went away too early"),
    _counter(
        "vllm:request_success",
        "Continuations that ended: stop, length, abort (the client went away) or error",
        "finished_reason",
    ),
    _counter("vllm:admission_rejections", "Requests refused with 429, by reason", "reason"),
    _counter(
        "ridgeline_admission_decisions",
        "Requests that were let in (admit) or refused for lack of capacity (reject)",
        "decision",
        "reason",
    ),
    _counter("vllm:prompt_tokens", "Prompt tokens"),
    _counter(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens, computed here (local_compute) or found (local_cache_hit)",
        "source",
    ),
    _counter(
        "vllm:prompt_tokens_cached",
        "Prompt tokens found in the prefix cache",
    ),
    _counter("vllm:prompt_tokens_cached_by_source", "The same by memory: device", "source"),
    _counter("vllm:generation_tokens", "Tokens generated"),
    _tokens("vllm:request_prompt_tokens", "Tokens of each prompt"),
    _tokens("vllm:request_generation_tokens", "Tokens of each continuation"),
    _tokens("vllm:request_max_num_generation_tokens", "Tokens of a prompt's longest continuation"),
    _tokens("vllm:request_params_max_tokens", "Most tokens that a continuation might have had"),
    _histogram("vllm:request_params_n", "Continuations asked for", PARAMS_N),
    _tokens("vllm:request_prefill_kv_computed_tokens", "Prompt tokens that were not cached"),
    _histogram(
        "vllm:request_num_preemptions", "Times that a continuation was preempted", PREEMPTIONS
    ),
)
LATENCIES = (
    _histogram(
        "vllm:time_to_first_token_seconds",
        "From a request's arrival to each prompt's first token",
        TTFT,
    ),
    _histogram(
        "vllm:inter_token_latency_seconds",
        "Gaps between a continuation's tokens; none between those that come together",
        ITL,
    ),
    _histogram(
        "vllm:request_time_per_output_token_seconds",
        "Mean gap between a continuation's tokens",
        ITL,
    ),
    _histogram(
        "vllm:e2e_request_latency_seconds",
        "From a request's arrival to each prompt's last token",
        LATENCY,
    ),
    _histogram(
        "vllm:request_queue_time_seconds", "From the engine's door to the first step", LATENCY
    ),
    _histogram(
        "vllm:request_prefill_time_seconds", "From the first step to the first token", LATENCY
    ),
    _histogram("vllm:request_decode_time_seconds", "From the first token to the last one", LATENCY),
    _histogram(
        "vllm:request_inference_time_seconds", "From the first step to the last token", LATENCY
    ),
    _histogram(
        "gen_ai_server_request_duration_seconds",
        "Time of a request, to its last token or to its error",
        OTEL_DURATION,
        *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
        *("gen_ai_response_model", "error_type"),
    ),
    _histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "Time per token after the first, of requests that succeeded",
        OTEL_TPOT,
        *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
        "gen_ai_response_model",
    ),
    _histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "Time to the first token, of requests that succeeded",
        OTEL_TTFT,
        *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
        "gen_ai_response_model",
    ),
)
_WITH_SLO = "with latency targets"
TARGETS = (
    _counter(
        "ridgeline_slo_requests",
        "Requests by whether they met a target (ttft, tpot, e2e) or every one (all). What the "
        "server failed or refused has missed; what its client gave up is not counted",
        *("slo", "outcome", "class"),
        when=_WITH_SLO,
    ),
    _gauge("ridgeline_slo_target_seconds", "The targets", "slo", "class", when=_WITH_SLO),
    _counter(
        "ridgeline_goodput_tokens",
        "Tokens of the requests that met every target; of all complete ones where there is none",
        "class",
    ),
)
QUEUE_AND_CACHE = (
    _gauge(
        "vllm:num_requests_running",
        "Sequences in the batch",
    ),
    _gauge(
        "vllm:num_requests_waiting",
        "Sequences in the queue",
    ),
    _gauge(
        "vllm:num_requests_waiting_by_reason",
        "The same by what they wait for: capacity, or (deferred) their grammar or a prefix that "
        "another computes",
        "reason",
    ),
    _gauge(
        "ridgeline_predicted_wait_seconds",
        "What a request that came now would wait for its first step, by the step-time model",
    ),
    _gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks that are used, 0 to 1"),
    _gauge("ridgeline_kv_blocks", "KV blocks: free, cached (findable, unused), used", "state"),
    _counter("ridgeline_kv_evictions", "Cached KV blocks that were given to somebody else"),
    _counter(
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
    ),
    _counter(
        "vllm:prefix_cache_hits",
        "Prompt tokens found in the prefix cache",
    ),
    _counter(
        "vllm:num_preemptions",
        "Times that a sequence gave its blocks up",
    ),
    _counter("vllm:spec_decode_num_drafts", "Times that a sequence got drafts"),
    _counter(
        "vllm:spec_decode_num_draft_tokens",
        "Tokens drafted",
    ),
    _counter(
        "vllm:spec_decode_num_accepted_tokens",
        "Of those, tokens that were right",
    ),
    _counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "The same by their place in the draft",
        "position",
        when="once a draft was right",
    ),
)
STEPS = (
    _histogram(
        "vllm:iteration_tokens_total",
        "Tokens that each step brought, and the prompts of the requests that it brought a first",
        ITERATION_TOKENS,
    ),
    _counter("vllm:estimated_flops_per_gpu", "Operations of all steps, on one device"),
    _counter("vllm:estimated_read_bytes_per_gpu", "Bytes read by all steps, on one device"),
    _counter("vllm:estimated_write_bytes_per_gpu", "Bytes written by all steps, on one device"),
    _counter("ridgeline_engine_steps", "Forward passes"),
    _counter("ridgeline_engine_step_seconds", "Time in forward passes"),
    _histogram("ridgeline_step_duration_seconds", "Time of each step", STEP_SECONDS, "phase"),
    _histogram(
        "ridgeline_step_duration_predicted_seconds",
        "What the step-time model says of the same steps",
        STEP_SECONDS,
        "phase",
    ),
    _histogram(
        "ridgeline_step_prediction_error_ratio",
        "Measured over predicted time of each step, less one",
        ERROR_RATIOS,
        "phase",
    ),
    _histogram(
        "ridgeline_achieved_bandwidth_ratio",
        "Bytes of each step over what the memory could have moved meanwhile, by its measured "
        "bandwidth, else by the catalogue's",
        ROOF_SHARES,
        "phase",
    ),
    _histogram(
        "ridgeline_achieved_flops_ratio",
        "Operations of each step over what the device could have done meanwhile",
        ROOF_SHARES,
        "phase",
    ),
    _histogram("ridgeline_batch_size", "Sequences in each step", POWERS_OF_TWO, "phase"),
    _histogram("ridgeline_batch_tokens", "Tokens computed in each step", POWERS_OF_TWO, "phase"),
    _histogram(
        "ridgeline_scheduler_step_overhead_seconds",
        "Time of the scheduler in each step; with --async-scheduling the device works meanwhile",
        HOST_SECONDS,
    ),
)
_WITH_PLAN = "under ridgeline serve"
SERVER = (
    _gauge("ridgeline_engine_ready", "1 while requests are taken"),
    _counter("ridgeline_engine_restarts", "Times that the engine died and was started again"),
    _gauge(
        "ridgeline_startup_seconds",
        "Time of the newest start: prepare (hardware, plan, tokenizer), engine (its process, with "
        "load and warm_up), total",
        "phase",
    ),
    _gauge("ridgeline_build_info", "1", "version"),
    _gauge(
        "ridgeline_plan_info",
        "1; what was decided (for each pool of devices)",
        *("hardware", "workload", "dtype", "quantization", "kv_cache_dtype"),
        *("tensor_parallel_size", "pipeline_parallel_size", "replicas", "max_num_seqs"),
        *("max_num_batched_tokens", "max_model_len", "block_size", "num_kv_blocks", "slo"),
        *("engine_kind", "objective"),
        when=_WITH_PLAN,
    ),
    _gauge(
        "ridgeline_plan_expected_latency_seconds",
        "What the plan promises: ttft, tpot, e2e",
        "latency",
        "quantile",
        when=_WITH_PLAN,
    ),
    _gauge(
        "ridgeline_plan_expected_tokens_per_second",
        "Output tokens per second that the plan promises for its workload",
        when=_WITH_PLAN,
    ),
    _gauge("ridgeline_kv_block_size_tokens", "Tokens in a KV block", when=_WITH_PLAN),
    _gauge(
        "vllm:cache_config_info",
        "1; the KV cache's configuration",
        *("engine", "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"),
        *("gpu_memory_utilization", "kv_cache_size_tokens"),
        when=_WITH_PLAN,
    ),
)
_WITH_DRIVER = "where NVIDIA's driver tells"
HOST = (
    _gauge(
        "ridgeline_process_resident_memory_bytes",
        "Memory of the server process, and of the engine's together",
        "process",
    ),
    _gauge("ridgeline_host_memory_used_bytes", "Memory in use on this host"),
    _gauge("ridgeline_host_memory_total_bytes", "Memory of this host"),
    *(
        _gauge(f"ridgeline_accelerator_{name}", text, "device", "device_name", when=_WITH_DRIVER)
        for name, text in (
            ("memory_used_bytes", "Memory in use on the device"),
            ("memory_total_bytes", "Memory of the device"),
            ("power_watts", "Power that the device draws"),
            ("utilization_ratio", "Share of the last moment that kernels ran on the device"),
            ("temperature_celsius", "Temperature of the device"),
            ("clock_hertz", "Clock of the device's multiprocessors"),
        )
    ),
)

GROUPS: tuple[tuple[str, tuple[Series, ...]], ...] = (
    ("Requests and tokens", REQUESTS),
    ("Latencies", LATENCIES),
    ("Targets", TARGETS),
    ("Queue, KV cache, speculation", QUEUE_AND_CACHE),
    ("Steps", STEPS),
    ("Server and plan", SERVER),
    ("Processes and devices", HOST),
)
SERIES = {series.name: series for _, group in GROUPS for series in group}
