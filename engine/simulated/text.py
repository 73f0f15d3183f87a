"""What the simulated engine says."""

PLACEHOLDER_TEXT = (
    "This is a placeholder: no model runs here. Only the time that passes between these words is "
    "meant, and it is the time that the simulated hardware would take for them. The scheduler is "
    "the real one, and so are the queue, the blocks of the cache, the stream and the metrics.\n"
)
"""Ends with a line break, so that it can be repeated."""
