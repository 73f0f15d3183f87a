"""OpenAI's HTTP API: what it accepts, what it answers, and how a request becomes tokens."""
