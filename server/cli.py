"""The ``ridgeline`` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from server import flags
from server.choices import EngineChoice
from server.logs import LogFormat, LogLevel
from server.version import ridgeline_version

app = typer.Typer(
    name="ridgeline",
    help="A hardware-aware LLM inference server.",
    epilog="Example: ridgeline serve --port 9000",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Runs the command line; what is wrong with it is told in one line."""
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        sys.exit(_complain(error.format_message(), getattr(error, "exit_code", 2)))
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, status: int) -> int:
    if message:  # without a command the help was printed, which says it all
        print(f"ridgeline: {' '.join(message.split())}", file=sys.stderr)
    return status


@app.callback(invoke_without_command=True)
def ridgeline(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"ridgeline {ridgeline_version()}")
        raise typer.Exit


@app.command(epilog="Example: ridgeline serve Qwen/Qwen3-0.6B --port 9000 --max-num-seqs 32")
def serve(
    context: typer.Context,
    model: flags.Model = None,
    host: flags.Host = "127.0.0.1",
    port: flags.Port = 8000,
    served_model_name: flags.ServedModelName = None,
    api_key: flags.ServerApiKey = None,
    api_key_file: flags.ApiKeyFile = None,
    requests_per_minute: flags.RequestsPerMinute = None,
    tokens_per_minute: flags.TokensPerMinute = None,
    allowed_origin: flags.AllowedOrigin = None,
    max_body_size: flags.MaxBodySize = "16MiB",
    request_timeout: flags.RequestTimeout = 60.0,
    ssl_keyfile: flags.SslKeyfile = None,
    ssl_certfile: flags.SslCertfile = None,
    ssl_keyfile_password: flags.SslKeyfilePassword = None,
    ssl_ca_certs: flags.SslCaCerts = None,
    plan: flags.PlanFile = None,
    engine: flags.Engine = EngineChoice.AUTO,
    on: flags.SimulatedOn = None,
    slo: flags.Slo = None,
    workload: flags.Workload = None,
    dtype: flags.Dtype = None,
    quantization: flags.Quantization = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    tensor_parallel_size: flags.TensorParallelSize = None,
    pipeline_parallel_size: flags.PipelineParallelSize = None,
    stage_layers: flags.StageLayers = None,
    replicas: flags.Replicas = None,
    enable_expert_parallel: flags.EnableExpertParallel = None,
    max_model_len: flags.MaxModelLen = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
    max_prefill_chunk: flags.MaxPrefillChunk = None,
    block_size: flags.BlockSize = None,
    kv_cache_memory: flags.KvCacheMemory = None,
    num_kv_blocks: flags.NumKvBlocks = None,
    gpu_memory_utilization: flags.GpuMemoryUtilization = None,
    no_prefix_caching: flags.NoPrefixCaching = False,
    threads: flags.Threads = None,
    device: flags.Device = None,
    attention_backend: flags.AttentionBackend = None,
    linear_kernel: flags.LinearKernel = None,
    speculative_tokens: flags.SpeculativeTokens = None,
    async_scheduling: flags.AsyncScheduling = None,
    tool_call_parser: flags.ToolCallParser = "auto",
    reasoning_parser: flags.ReasoningParser = "auto",
    max_queued_requests: flags.MaxQueuedRequests = 256,
    max_queued_tokens: flags.MaxQueuedTokens = None,
    max_queue_wait: flags.MaxQueueWait = None,
    shutdown_grace: flags.ShutdownGrace = 30.0,
    otlp_endpoint: flags.OtlpEndpoint = None,
    log_format: flags.Format = LogFormat.TEXT,
    log_level: flags.Level = LogLevel.INFO,
) -> int:
    """Serve a model behind an OpenAI-compatible API."""
    # Imported here, so that the other commands and --help need not wait for it.
    from server.serve import StartupError
    from server.serve import serve as run
    from server.settings import ServeOptions

    try:
        return run(ServeOptions(**context.params))  # its fields have the parameters' names
    except StartupError as error:
        return _complain(str(error), 1)


@app.command(epilog="Example: ridgeline plan Llama-3.1-70B --on 4xL40S --slo ttft=2s,tpot=50ms")
def plan(
    context: typer.Context,
    model: flags.PlannedModel = None,
    on: flags.On = "auto",
    workload: flags.Workload = None,
    slo: flags.Slo = None,
    objective: flags.ObjectiveFlag = None,
    quality_bits: flags.QualityBits = None,
    as_json: flags.AsJson = False,
    as_yaml: flags.AsYaml = False,
    output: flags.Output = None,
    engine: flags.PlannedEngine = None,
    dtype: flags.Dtype = None,
    quantization: flags.Quantization = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    tensor_parallel_size: flags.TensorParallelSize = None,
    pipeline_parallel_size: flags.PipelineParallelSize = None,
    replicas: flags.Replicas = None,
    enable_expert_parallel: flags.EnableExpertParallel = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
    max_model_len: flags.MaxModelLen = None,
    block_size: flags.BlockSize = None,
    num_kv_blocks: flags.NumKvBlocks = None,
    gpu_memory_utilization: flags.GpuMemoryUtilization = None,
) -> int:
    """Choose a configuration for a model and say what it promises, and why."""
    from server.plan_command import PlanOptions, run_plan

    try:
        refusal = run_plan(PlanOptions(**context.params))
    except ValueError as error:
        return _complain(str(error), 2)
    return _complain(f"no plan: {refusal}", 1) if refusal else 0


@app.command(epilog="Example: ridgeline quality ./my-model --scheme int4 --text prose.txt")
def quality(
    context: typer.Context,
    model: flags.Model = None,
    scheme: flags.ComparedSchemes = None,
    kv_cache_dtype: flags.ComparedKvCacheDtypes = None,
    linear_kernel: flags.LinearKernel = None,
    text: flags.TextFile = None,
    tokens: flags.NumTokens = 2048,
    cases: flags.Cases = 20,
    as_json: flags.Json = False,
) -> int:
    """Measure what fewer bits cost this model; plans for it then rest on that."""
    from engine.native.loader import WeightLoadingError
    from server.quality_command import QualityOptions, run_quality

    try:
        run_quality(
            QualityOptions(
                model=model,
                schemes=tuple(scheme or ()),
                kv_cache_dtypes=tuple(kv_cache_dtype or ()),
                linear_kernel=linear_kernel or "auto",
                text=text,
                num_tokens=tokens,
                num_cases=cases,
                as_json=as_json,
            )
        )
    except (ValueError, WeightLoadingError) as error:
        return _complain(str(error), 1)
    return 0


@app.command(epilog="Example: echo 'What is 2 + 2?' | ridgeline chat")
def chat(
    base_url: flags.BaseUrl = "http://127.0.0.1:8000",
    model: flags.AskedModel = None,
    api_key: flags.ClientApiKey = None,
    max_tokens: flags.MaxTokens = None,
    temperature: flags.Temperature = None,
) -> int:
    """Chat with a server in the terminal."""
    from server.chat_client import ChatError, ChatOptions, run_chat

    options = ChatOptions(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        model=model,
        api_key=api_key or None,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    try:
        return run_chat(options)
    except ChatError as error:
        return _complain(str(error), 1)


hardware = typer.Typer(
    help="What is here and what is known of it.",
    epilog="Example: ridgeline hardware detect",
    no_args_is_help=True,
)
app.add_typer(hardware, name="hardware")


@hardware.command(epilog="Example: ridgeline hardware detect --json")
def detect(as_json: flags.Json = False) -> None:
    """Show this machine's accelerators, links, processor and limits."""
    from server.hardware_command import run_detect

    run_detect(as_json)


@hardware.command("list", epilog="Example: ridgeline hardware list --vendor amd")
def list_devices(vendor: flags.OnlyVendor = None, as_json: flags.Json = False) -> None:
    """List the devices that are known by name."""
    from server.hardware_command import run_list

    run_list(vendor, as_json)


@hardware.command(epilog="Example: ridgeline hardware show H100-SXM")
def show(name: flags.DeviceName, as_json: flags.Json = False) -> int:
    """Show every figure of a device and where it comes from."""
    from profiles.catalog import UnknownDeviceError
    from server.hardware_command import run_show

    try:
        run_show(name, as_json)
    except UnknownDeviceError as error:
        return _complain(str(error), 2)
    return 0


@hardware.command(epilog="Example: ridgeline hardware calibrate --model ./my-model")
def calibrate(
    model: flags.CalibratedModels = None,
    dtype: flags.CalibratedDtype = "float32",
    quantization: flags.CalibratedQuantizations = None,
    kv_cache_dtype: flags.CalibratedKvCacheDtypes = None,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> int:
    """Measure this machine; plans for it then rest on measurements. Takes about two minutes."""
    from server.calibrate_command import CalibrateOptions, run_calibrate

    options = CalibrateOptions(
        models=tuple(model or ()),
        dtype=dtype,
        quantizations=tuple(quantization or ()),
        kv_cache_dtypes=tuple(kv_cache_dtype or ()),
        threads=threads,
        as_json=as_json,
    )
    try:
        run_calibrate(options)
    except ValueError as error:
        return _complain(str(error), 1)
    return 0


if __name__ == "__main__":
    main()
