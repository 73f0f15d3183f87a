"""The ``ridgeline`` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from server import flags
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
    model: flags.Model = None,
    host: flags.Host = "127.0.0.1",
    port: flags.Port = 8000,
    served_model_name: flags.ServedModelName = None,
    api_key: flags.ServerApiKey = None,
    dtype: flags.Dtype = None,
    max_model_len: flags.MaxModelLen = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
    max_prefill_chunk: flags.MaxPrefillChunk = None,
    block_size: flags.BlockSize = None,
    kv_cache_memory: flags.KvCacheMemory = None,
    num_kv_blocks: flags.NumKvBlocks = None,
    no_prefix_caching: flags.NoPrefixCaching = False,
    threads: flags.Threads = None,
    attention_backend: flags.AttentionBackend = None,
    max_queued_requests: flags.MaxQueuedRequests = 256,
    shutdown_grace: flags.ShutdownGrace = 30.0,
    log_format: flags.Format = LogFormat.TEXT,
    log_level: flags.Level = LogLevel.INFO,
) -> int:
    """Serve a model behind an OpenAI-compatible API."""
    # Imported here, so that the other commands and --help need not wait for it.
    from server.serve import StartupError
    from server.serve import serve as run
    from server.settings import ServeOptions

    options = ServeOptions(
        model=model,
        host=host,
        port=port,
        served_model_name=served_model_name,
        api_key=api_key or None,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_prefill_chunk=max_prefill_chunk,
        block_size=block_size,
        kv_cache_memory=kv_cache_memory,
        num_kv_blocks=num_kv_blocks,
        enable_prefix_caching=False if no_prefix_caching else None,
        threads=threads,
        attention_backend=attention_backend,
        max_queued_requests=max_queued_requests,
        shutdown_grace_s=shutdown_grace,
        log_format=log_format,
        log_level=log_level,
    )
    try:
        return run(options)
    except StartupError as error:
        return _complain(str(error), 1)


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


if __name__ == "__main__":
    main()
