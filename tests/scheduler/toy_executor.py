"""An executor without a model, that notices every wrong block.

The "key and value" of a token is a hash of all tokens up to it, stored in the slot that the block
table gives it. Before a sequence computes, all its earlier slots are read back and compared; the
sampled token is a function of the tokens before it. So a block that is shared wrongly, freed
too early or given to two makes a test fail, and the right output is known without batching.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import StartedSequence, StepPlan, StepResult

VOCAB_SIZE = 50


def greedy(max_tokens: int = 8, **overrides: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0, **overrides)  # type: ignore[arg-type]


def request(request_id: str, prompt: Sequence[int], **fields: object) -> Request:
    fields.setdefault("sampling", greedy())
    return Request(request_id=request_id, prompt_token_ids=tuple(prompt), **fields)  # type: ignore[arg-type]


def _mix(state: bytes, token_id: int) -> bytes:
    return blake2b(state + token_id.to_bytes(4, "little"), digest_size=8).digest()


def _states(token_ids: Sequence[int]) -> list[bytes]:
    states, state = [], b""
    for token_id in token_ids:
        state = _mix(state, token_id)
        states.append(state)
    return states


def next_token(token_ids: Sequence[int], index: int) -> int:
    """Often a function of the last token alone, so that texts repeat themselves and drafts are
    right now and then; otherwise of all tokens."""
    whim = blake2b(_states(token_ids)[-1] + bytes([index]), digest_size=2).digest()
    return whim[0] % VOCAB_SIZE if whim[1] % 4 == 0 else (3 * token_ids[-1] + index) % 5


def expected_output(request: Request, index: int, max_model_len: int) -> list[int]:
    """What the request must yield, computed alone and without blocks."""
    token_ids = list(request.prompt_token_ids)
    output: list[int] = []
    while True:
        token_id = next_token(token_ids, index)
        token_ids.append(token_id)
        output.append(token_id)
        if (
            token_id in request.sampling.stop_token_ids
            or len(output) >= request.sampling.max_tokens
            or len(token_ids) >= max_model_len
        ):
            return output


class ToyExecutor:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache: list[bytes | None] = [None] * (num_blocks * block_size)
        self.sequences: dict[int, tuple[StartedSequence, list[int], list[int]]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        for sequence_id in plan.dropped:
            del self.sequences[sequence_id]
        for started in plan.started:
            assert started.sequence_id not in self.sequences
            self.sequences[started.sequence_id] = (started, list(started.token_ids), [])
        sampled = {}
        for step in plan.scheduled:
            started, token_ids, block_table = self.sequences[step.sequence_id]
            block_table += step.new_block_ids
            states = _states([*token_ids, *step.draft_token_ids])
            end = step.num_computed_tokens + step.num_tokens
            assert step.num_tokens >= 1
            assert step.samples == (end == len(states))
            for position in range(step.num_computed_tokens):
                assert self.cache[self._slot(block_table, position)] == states[position]
            for position in range(step.num_computed_tokens, end):
                self.cache[self._slot(block_table, position)] = states[position]
            if step.samples:
                tokens = [
                    next_token([*token_ids, *step.draft_token_ids[:i]], started.index)
                    for i in range(step.num_sampled)
                ]
                sampled[step.sequence_id] = step.accepted(tokens)
                token_ids += sampled[step.sequence_id]
        return StepResult(sampled_token_ids=sampled)

    def check(self) -> None:
        """Nothing of it can break."""

    def _slot(self, block_table: list[int], position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return block_table[block] * self.block_size + offset
