from planner.batch import default_token_budget


def test_a_small_model_gets_the_full_budget() -> None:
    assert default_token_budget(7_000_000, num_cores=2, max_num_seqs=64) == 512


def test_a_large_model_gets_short_steps_that_still_move_prompts_on() -> None:
    assert default_token_budget(8_000_000_000, num_cores=2, max_num_seqs=64) == 128


def test_more_cores_afford_more_tokens() -> None:
    few, many = (default_token_budget(600_000_000, cores, 8) for cores in (2, 8))
    assert 16 < few < many < 512
