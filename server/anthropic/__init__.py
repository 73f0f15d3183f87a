"""Anthropic's Messages API, answered by the same conversation pipeline as chat."""
