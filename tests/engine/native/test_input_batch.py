from __future__ import annotations

import pytest

from engine.native.input_batch import InputBatch
from scheduler.config import SchedulerConfig
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan
from tests.engine.native.plans import GREEDY

LIMITS = SchedulerConfig(
    num_blocks=8, block_size=4, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=16
)


def started(sequence_id: int, *token_ids: int) -> StartedSequence:
    return StartedSequence(sequence_id, token_ids, len(token_ids), GREEDY, 0)


def scheduled(
    sequence_id: int, computed: int, count: int, *blocks: int, samples: bool = False
) -> ScheduledSequence:
    return ScheduledSequence(sequence_id, computed, count, blocks, samples)


def test_builds_the_flat_batch_of_a_mixed_step() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(7, 10, 11, 12, 13, 14, 15), started(8, 20, 21))))
    batch.build([scheduled(7, 0, 3, 5)])
    inputs = batch.build([scheduled(7, 3, 2, 2), scheduled(8, 0, 2, 6, samples=True)])
    assert inputs.token_ids.tolist() == [13, 14, 20, 21]
    assert inputs.positions.tolist() == [3, 4, 0, 1]
    assert inputs.attention.query_start_loc.tolist() == [0, 2, 4]
    assert inputs.attention.context_lens.tolist() == [5, 2]
    assert inputs.attention.block_tables.tolist()[0] == [5, 2]
    assert inputs.attention.block_tables.tolist()[1][0] == 6
    assert inputs.attention.slot_mapping.tolist() == [5 * 4 + 3, 2 * 4, 6 * 4, 6 * 4 + 1]
    assert inputs.max_context_len == 5
    assert inputs.sampled_tokens.tolist() == [3]
    assert [s.sequence_id for s in inputs.sampling] == [8]

    assert batch.take_in(inputs.sampling, [22]) == {8: (22,)}
    inputs = batch.build([scheduled(8, 2, 1, samples=True)])
    assert inputs.token_ids.tolist() == [22]
    (row,) = batch.sampling_rows(inputs)
    assert row.token_ids.tolist() == [20, 21, 22]
    assert row.num_output_tokens == 1


def test_drafts_are_computed_and_sampled_as_if_they_were_known() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(7, 10, 11, 12), started(8, 20, 21))))
    batch.build([scheduled(7, 0, 2, 5)])
    drafting = ScheduledSequence(7, 2, 4, (2,), True, (13, 14, 15))
    inputs = batch.build([scheduled(8, 0, 1, 6), drafting])
    assert inputs.token_ids.tolist() == [20, 12, 13, 14, 15]
    assert inputs.attention.context_lens.tolist() == [1, 6]
    assert inputs.sampled_tokens.tolist() == [1, 2, 3, 4]
    rows = batch.sampling_rows(inputs)
    assert [row.token_ids.tolist() for row in rows] == [
        [10, 11, 12],
        [10, 11, 12, 13],
        [10, 11, 12, 13, 14],
        [10, 11, 12, 13, 14, 15],
    ]
    assert [row.num_output_tokens for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("sampled", "accepted"),
    [
        ([9, 14, 15, 16], (9,)),
        ([13, 9, 15, 16], (13, 9)),
        ([13, 14, 15, 16], (13, 14, 15, 16)),
    ],
)
def test_drafts_count_up_to_the_first_wrong_one(
    sampled: list[int], accepted: tuple[int, ...]
) -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(7, 10, 11, 12), started(8, 20, 21))))
    plain = scheduled(8, 0, 2, 6, samples=True)
    drafting = ScheduledSequence(7, 0, 6, (5, 2), True, (13, 14, 15))
    inputs = batch.build([plain, drafting, scheduled(8, 0, 1)])
    assert batch.take_in(inputs.sampling, [22, *sampled]) == {8: (22,), 7: accepted}
    end = 3 + len(accepted)
    inputs = batch.build([scheduled(7, end - 1, 1, samples=True)])
    assert batch.sampling_rows(inputs)[0].token_ids.tolist() == [10, 11, 12, *accepted]


def test_drops_before_it_starts_and_reuses_rows() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(1, 5, 6),)))
    inputs = batch.build([scheduled(1, 0, 2, 3, samples=True)])
    batch.take_in(inputs.sampling, [7])
    # Preempted and started again with its output, and with other blocks.
    again = StartedSequence(1, (5, 6, 7), 2, GREEDY, 0)
    batch.apply(StepPlan(1, dropped=(1, 99), started=(again,)))
    assert len(batch) == 1
    inputs = batch.build([scheduled(1, 0, 3, 6, samples=True)])
    assert inputs.token_ids.tolist() == [5, 6, 7]
    assert inputs.attention.block_tables.tolist() == [[6]]
    assert batch.sampling_rows(inputs)[0].num_output_tokens == 1


def test_holds_more_sequences_than_one_step_runs() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=tuple(started(i, i, i + 1) for i in range(9))))
    for i in range(9):
        inputs = batch.build([scheduled(i, 0, 2, i % 8, samples=True)])
        (row,) = batch.sampling_rows(inputs)
        assert row.token_ids.tolist() == [i, i + 1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([scheduled(3, 0, 1, 0)], "sequence 3 is scheduled but never started"),
        ([scheduled(1, 0, 1, 8)], "outside the cache of 8"),
        ([scheduled(1, 0, 1, -1)], "outside the cache of 8"),
        ([scheduled(1, 0, 1, 0, 1, 2, 3, 4)], "more blocks than max_model_len 16 needs"),
        ([scheduled(1, 0, 1)], "with blocks for 0"),
        ([scheduled(1, 0, 5, 0)], "with blocks for 4"),
        ([scheduled(1, 4, 3, 0, 1)], "sequence of 6 tokens"),
        ([scheduled(1, 0, 0, 0)], "does not fit"),
        ([scheduled(1, -1, 2, 0)], "does not fit"),
        ([scheduled(1, 0, 4, 0, samples=True)], "samples=True.* does not fit"),
        ([ScheduledSequence(1, 5, 2, (0, 1), False, (9,))], "drafts: they are not sampled"),
        ([ScheduledSequence(1, 6, 1, (0, 1), True, (9,))], "drafts: they are not sampled"),
        ([ScheduledSequence(1, 5, 12, (0, 1, 2, 3), True, (9,) * 11)], "beyond max_model_len 16"),
        ([ScheduledSequence(1, 4, 2, (0, 1), True, (9,))], "does not fit a sequence of 7 tokens"),
        ([ScheduledSequence(1, 5, 3, (0, 1), True, (9,))], "does not fit a sequence of 7 tokens"),
    ],
)
def test_refuses_plans_that_would_reach_outside(
    steps: list[ScheduledSequence], message: str
) -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(1, 1, 2, 3, 4, 5, 6),)))
    with pytest.raises(ValueError, match=message):
        batch.build(steps)


def test_refuses_sequences_that_are_there_or_too_long() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(1, 1),)))
    with pytest.raises(ValueError, match="has already started"):
        batch.apply(StepPlan(1, started=(started(1, 1),)))
    with pytest.raises(ValueError, match="17 tokens, more than max_model_len 16"):
        batch.apply(StepPlan(2, started=(started(2, *range(17)),)))


def test_a_step_is_built_while_the_one_before_it_samples() -> None:
    batch = InputBatch(LIMITS)
    batch.apply(StepPlan(0, started=(started(7, 10, 11), started(8, 20, 21, 22))))
    first = batch.build([scheduled(7, 0, 2, 5, samples=True), scheduled(8, 0, 2, 6)])
    steps = [scheduled(8, 2, 1, samples=True), scheduled(7, 2, 1, samples=True)]
    with pytest.raises(ValueError, match="does not fit a sequence of 2 tokens"):
        batch.build(steps)
    second = batch.build(steps, in_flight=first.sampling)
    rows = batch.sampling_rows(second)
    assert second.attention.context_lens.tolist() == [3, 3]
    batch.take_in(first.sampling, [12])
    batch.complete(second)
    assert second.token_ids.tolist() == [22, 12]
    assert [row.token_ids.tolist() for row in rows] == [[20, 21, 22], [10, 11, 12]]
    # Sequence 7 ends with that token, and another takes its row.
    batch.apply(StepPlan(2, dropped=(7,), started=(started(9, 30, 31),)))
    third = batch.build(
        [scheduled(8, 3, 1, samples=True), scheduled(9, 0, 2, 7, samples=True)],
        in_flight=second.sampling,
    )
    batch.take_in(second.sampling, [23, 13])
    batch.complete(third)
    assert third.token_ids.tolist() == [23, 30, 31]
