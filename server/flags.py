"""The flags of the commands: their types, limits and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiles.accelerator import Vendor
from scheduler.config import MOST_SPECULATIVE_TOKENS
from server.choices import EngineChoice, Objective
from server.logs import LogFormat, LogLevel

# What to serve, and where.
Model = Annotated[
    str | None,
    typer.Argument(help="Directory, Hugging Face id, or nothing for the bundled model."),
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
ServedModelName = Annotated[str | None, typer.Option(help="What clients call the model.")]
ServerApiKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Key that requests must carry (all but /health and /ready); may be repeated.",
        envvar="RIDGELINE_API_KEY",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="Keys, one a line, with name=…, requests=… and tokens=… a minute."),
]
RequestsPerMinute = Annotated[
    int | None, typer.Option(help="Requests that each key may make in a minute.", min=1)
]
TokensPerMinute = Annotated[
    int | None,
    typer.Option(help="Tokens, of prompts and outputs, that each key has in a minute.", min=1),
]
AllowedOrigin = Annotated[
    list[str] | None,
    typer.Option(help="Web page that may ask from a browser (CORS), or *; may be repeated."),
]
MaxBodySize = Annotated[str, typer.Option(help="Largest request, such as 16MiB.")]
RequestTimeout = Annotated[
    float,
    typer.Option(
        help="Seconds that a request's headers may take to arrive, and its body.", min=0.1
    ),
]
SslKeyfile = Annotated[Path | None, typer.Option(help="Key of the certificate, for HTTPS.")]
SslCertfile = Annotated[Path | None, typer.Option(help="Certificate, for HTTPS.")]
SslKeyfilePassword = Annotated[
    str | None,
    typer.Option(help="Password of the key.", envvar="RIDGELINE_SSL_KEYFILE_PASSWORD"),
]
SslCaCerts = Annotated[
    Path | None, typer.Option(help="Authorities; clients must show a certificate of theirs.")
]

# What to plan for.
PlannedModel = Annotated[
    str | None,
    typer.Argument(help="Directory, config.json, the name of a known model, or the bundled one."),
]
On = Annotated[
    str,
    typer.Option(
        help="Hardware, such as 4xL40S or 2xH100-SXM+4xL40S, or a profile's file (2xmy-card.yaml); "
        "auto is what is here."
    ),
]
SimulatedOn = Annotated[
    str | None, typer.Option("--on", help="Hardware to simulate, such as 8xH100-SXM.")
]
Workload = Annotated[
    str | None, typer.Option(help="What will be asked, such as input=512,output=128,rate=4.")
]
Slo = Annotated[str | None, typer.Option(help="Latency targets, such as ttft=500ms,tpot=50ms.")]
ObjectiveFlag = Annotated[Objective | None, typer.Option(help="What to optimise.")]
QualityBits = Annotated[
    int | None, typer.Option(help="Fewest bits that weights may be quantized to.", min=1, max=32)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")]
AsYaml = Annotated[bool, typer.Option("--yaml", help="Print the plan as YAML.")]
Output = Annotated[
    Path | None, typer.Option(help="Write the plan to this file, for ridgeline serve --plan.")
]
PlanFile = Annotated[Path | None, typer.Option(help="A plan that ridgeline plan wrote.")]
Engine = Annotated[EngineChoice, typer.Option(help="What runs the model.")]
PlannedEngine = Annotated[str | None, typer.Option("--engine", help="native or vllm.")]

# How the engine runs; what is not given is decided by Ridgeline.
Dtype = Annotated[
    str | None, typer.Option(help="Type of activations; in vLLM also of weights and KV cache.")
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="How weights are held: none, fp8, int8, int8_g128, int4, int4_g128; vLLM: none, fp8, …"
    ),
]
KvCacheDtype = Annotated[
    str | None,
    typer.Option(help="Type of the KV cache: auto, float32, bfloat16, int8, fp8."),
]
TensorParallelSize = Annotated[
    int | None,
    typer.Option(help="Devices (on a CPU: processes) that each layer is split over.", min=1),
]
PipelineParallelSize = Annotated[
    int | None,
    typer.Option(help="Devices (on a CPU: processes) that the layers are divided among.", min=1),
]
StageLayers = Annotated[
    str | None,
    typer.Option(
        help="Layers of each stage, such as 20,12, where stages are not to take equally long."
    ),
]
Replicas = Annotated[int | None, typer.Option(help="Copies of the model.", min=1)]
EnableExpertParallel = Annotated[
    bool | None,
    typer.Option(
        "--enable-expert-parallel/--no-enable-expert-parallel",
        help="Divide the experts among the devices that split the layers, instead of each expert.",
    ),
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Tokens of prompt and output together.", min=1)
]
MaxNumSeqs = Annotated[int | None, typer.Option(help="Sequences in one step at most.", min=1)]
MaxNumBatchedTokens = Annotated[int | None, typer.Option(help="Tokens in one step at most.", min=1)]
MaxPrefillChunk = Annotated[
    int | None, typer.Option(help="Tokens of one prompt in one step at most.", min=1)
]
BlockSize = Annotated[int | None, typer.Option(help="Tokens in a KV block.", min=1)]
KvCacheMemory = Annotated[str | None, typer.Option(help="Memory for the KV cache, such as 4GiB.")]
NumKvBlocks = Annotated[
    int | None, typer.Option(help="KV blocks, instead of an amount of memory.", min=1)
]
GpuMemoryUtilization = Annotated[
    float | None, typer.Option(help="Share of each device's memory that the engine takes.")
]
NoPrefixCaching = Annotated[
    bool, typer.Option("--no-prefix-caching", help="Share no KV blocks between requests.")
]
Device = Annotated[
    str | None, typer.Option(help="Where the native engine runs: auto (a GPU), cpu or cuda.")
]
Threads = Annotated[int | None, typer.Option(help="Compute threads.", min=1)]
AttentionBackend = Annotated[
    str | None,
    typer.Option(
        help="Attention kernels: auto, native or torch; on a GPU auto, triton, torch, sdpa, "
        "flash-attn or flashinfer."
    ),
]
LinearKernel = Annotated[
    str | None,
    typer.Option(
        help="Kernel of the matrix products: int8-activations, fp32-activations, torch, …; on a "
        "GPU int8-activations, fp8-activations, weight-only, torch. auto takes the fastest."
    ),
]
SpeculativeTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens drafted for one sequence in one step at most, where drafts pay; 0 is none.",
        min=0,
        max=MOST_SPECULATIVE_TOKENS,
    ),
]
AsyncScheduling = Annotated[
    bool | None,
    typer.Option(
        "--async-scheduling/--no-async-scheduling",
        help="Plan each step while the one before it runs; on a GPU that is the default.",
    ),
]

# How the server behaves.
MaxQueuedRequests = Annotated[
    int, typer.Option(help="Requests that may wait; more are answered 429.", min=0)
]
MaxQueuedTokens = Annotated[
    int | None, typer.Option(help="Prompt tokens that may wait; more are answered 429.", min=1)
]
MaxQueueWait = Annotated[
    float | None,
    typer.Option(help="Seconds; who is predicted to wait longer is answered 429.", min=0),
]
ShutdownGrace = Annotated[
    float, typer.Option(help="Seconds that running requests have to finish.", min=0)
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(help="OpenTelemetry collector to send traces to, such as http://localhost:4318."),
]
ToolCallParser = Annotated[
    str,
    typer.Option(
        help="How the model writes tool calls: auto (told from its chat template), hermes, llama3, "
        "mistral, json or none."
    ),
]
ReasoningParser = Annotated[
    str,
    typer.Option(
        help="How the model marks its thoughts: auto (told from its chat template), think, mistral "
        "or none."
    ),
]
Format = Annotated[LogFormat, typer.Option(help="For people or programs.")]
Level = Annotated[LogLevel, typer.Option(help="The least that is logged.")]

# ``ridgeline chat``.
BaseUrl = Annotated[str, typer.Option(help="Where the server listens.")]
AskedModel = Annotated[
    str | None, typer.Option(help="Model to ask; the server's own if not given.")
]
ClientApiKey = Annotated[
    str | None, typer.Option(help="The server's API key.", envvar="RIDGELINE_API_KEY")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of an answer at most.", min=1)]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", min=0.0, max=2.0)]

# ``ridgeline quality``.
ComparedSchemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        help="Weights to compare: none, fp8, int8, int8_g128, int4, int4_g128; may be repeated. "
        "All of them if not given.",
    ),
]
ComparedKvCacheDtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--kv-cache-dtype",
        help="KV caches to compare: float32, bfloat16, int8; may be repeated. The model's own and "
        "int8 if not given.",
    ),
]
TextFile = Annotated[
    Path | None, typer.Option("--text", help="Text to compare on; UTF-8.", exists=False)
]
NumTokens = Annotated[
    int, typer.Option("--tokens", help="Tokens of the text to compare on at most.", min=2)
]
Cases = Annotated[
    int,
    typer.Option(
        help="Held-out questions of each kind that the bundled model answers; 0 asks none.", min=0
    ),
]

# ``ridgeline hardware``.
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
OnlyVendor = Annotated[
    Vendor | None, typer.Option("--vendor", help="Only this vendor's.", case_sensitive=False)
]
DeviceName = Annotated[
    str, typer.Argument(help="Name in the catalogue, or what the driver calls it.", metavar="NAME")
]
CalibratedModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="Model to learn beside the bundled one: directory or Hugging Face id."
    ),
]
CalibratedDtype = Annotated[str, typer.Option("--dtype", help="Type of the models' activations.")]
CalibratedQuantizations = Annotated[
    list[str] | None,
    typer.Option(
        "--quantization",
        help="Weights to learn beside none and int8: fp8, int8_g128, int4, int4_g128; may be "
        "repeated.",
    ),
]
CalibratedKvCacheDtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--kv-cache-dtype",
        help="KV cache to learn beside each model's own: float32, bfloat16, int8; may be repeated.",
    ),
]
