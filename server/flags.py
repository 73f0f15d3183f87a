"""The flags of the commands: their types, limits and help."""

from __future__ import annotations

from typing import Annotated

import typer

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
    str | None,
    typer.Option(
        help="Key that requests must carry (all but /health and /ready).",
        envvar="RIDGELINE_API_KEY",
    ),
]

# How the engine runs; what is not given is decided by Ridgeline.
Dtype = Annotated[str | None, typer.Option(help="Type of weights, activations and KV cache.")]
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
NoPrefixCaching = Annotated[
    bool, typer.Option("--no-prefix-caching", help="Share no KV blocks between requests.")
]
Threads = Annotated[int | None, typer.Option(help="Compute threads.", min=1)]
AttentionBackend = Annotated[
    str | None, typer.Option(help="Attention kernel: auto, native or torch.")
]

# How the server behaves.
MaxQueuedRequests = Annotated[
    int, typer.Option(help="Requests that may wait; more are answered 503.", min=0)
]
ShutdownGrace = Annotated[
    float, typer.Option(help="Seconds that running requests have to finish.", min=0)
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
