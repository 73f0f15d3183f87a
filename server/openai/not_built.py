"""Well-known endpoints that this server does not have, and what to use in their place."""

from __future__ import annotations

_NO_FILES = "Send the work as ordinary requests; nothing is uploaded or kept on disk."
_NO_AUDIO = "The served model reads and writes text only."
_NO_STATE = "Use /v1/responses with previous_response_id, or send the whole conversation."
_NO_SCORES = "Use /v1/completions with echo and logprobs to score texts."
_NO_ADAPTERS = "Start a server for each set of weights."
_STARTED_ONCE = "The server is started for one model; stop the process to free its memory."

_INSTEAD: dict[str, str] = {
    # OpenAI
    "/v1/assistants": _NO_STATE,
    "/v1/audio": _NO_AUDIO,
    "/v1/batches": _NO_FILES,
    "/v1/chatkit": _NO_STATE,
    "/v1/containers": _NO_FILES,
    "/v1/conversations": _NO_STATE,
    "/v1/edits": "Use /v1/chat/completions.",
    "/v1/engines": "Use /v1/models.",
    "/v1/evals": _NO_FILES,
    "/v1/files": _NO_FILES,
    "/v1/fine_tuning": "This server runs models; it does not train them.",
    "/v1/images": _NO_AUDIO,
    "/v1/moderations": "Ask the model itself with /v1/chat/completions.",
    "/v1/realtime": "Use /v1/responses with stream.",
    "/v1/responses/compact": "Send the items that are to be kept as input.",
    "/v1/threads": _NO_STATE,
    "/v1/uploads": _NO_FILES,
    "/v1/vector_stores": _NO_FILES,
    "/v1/videos": _NO_AUDIO,
    # Anthropic
    "/v1/complete": "Use /v1/messages.",
    "/v1/messages/batches": _NO_FILES,
    # vLLM, SGLang and llama-server
    "/abort_request": "Close the connection; that aborts its request.",
    "/abort_requests": "Close the connection; that aborts its request.",
    "/classify": _NO_SCORES,
    "/completion": "Use /v1/completions.",
    "/flush_cache": "Send cache_salt to keep requests from sharing cached prefixes.",
    "/generate": "Use /v1/completions.",
    "/generate_stream": "Use /v1/completions with stream.",
    "/infill": "Use /v1/completions.",
    "/invocations": "Use /v1/chat/completions.",
    "/is_sleeping": _STARTED_ONCE,
    "/load": "Use /metrics.",
    "/lora-adapters": _NO_ADAPTERS,
    "/pooling": _NO_SCORES,
    "/props": "Use /v1/models.",
    "/rerank": _NO_SCORES,
    "/reset_prefix_cache": "Send cache_salt to keep requests from sharing cached prefixes.",
    "/score": _NO_SCORES,
    "/server_info": "Use /v1/models and /metrics.",
    "/sleep": _STARTED_ONCE,
    "/slots": "Use /metrics.",
    "/v1/classify": _NO_SCORES,
    "/v1/load_lora_adapter": _NO_ADAPTERS,
    "/v1/rerank": _NO_SCORES,
    "/v1/score": _NO_SCORES,
    "/v1/unload_lora_adapter": _NO_ADAPTERS,
    "/v2/rerank": _NO_SCORES,
    "/wake_up": _STARTED_ONCE,
    # Ollama
    "/api/chat": "Use /v1/chat/completions.",
    "/api/embed": "Use /v1/embeddings.",
    "/api/generate": "Use /v1/completions.",
    "/api/tags": "Use /v1/models.",
}


def what_to_use_instead(path: str) -> str | None:
    """A sentence for a path at or below one of those endpoints; None for any other path."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((_INSTEAD[prefix] for prefix in prefixes if prefix in _INSTEAD), None)
