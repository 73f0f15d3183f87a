"""OpenAI's Responses API, answered by the same conversation pipeline as chat."""
