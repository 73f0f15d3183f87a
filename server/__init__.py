"""The front door: command line, OpenAI-compatible HTTP API, tokenizing, streaming, metrics."""
