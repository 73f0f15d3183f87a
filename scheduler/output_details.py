"""What comes of a step beside tokens, as far as it is news."""

from __future__ import annotations

from dataclasses import replace

from scheduler.request import Sequence
from scheduler.step_plan import OutputDetails


def unreported(
    sequence: Sequence, details: OutputDetails, num_computed_before: int, num_tokens: int
) -> OutputDetails:
    """The details of a step, which began at ``num_computed_before`` tokens and brought others.

    Without the prompt tokens that were reported before the sequence lost its blocks, and without
    drafts that were right but stand behind the end.
    """
    scores, first = details.prompt_logprobs, num_computed_before + 1
    known = max(0, sequence.num_reported_tokens - first)
    sequence.num_reported_tokens = max(sequence.num_reported_tokens, first + len(scores))
    return replace(details, logprobs=details.logprobs[:num_tokens], prompt_logprobs=scores[known:])
