"""When things are due: offline step by step, online as many environment steps at once as there are environments."""

import pytest

from floq.runs.config import Config
from floq.training.schedule import Rate, Schedule


def stops(most=100, **settings):
    config = Config(log_interval=4, eval_interval=10, save_interval=7, **settings)
    schedule, step, found = Schedule(config), 0, []
    while step < schedule.last_step:
        step = schedule.next_stop(step, most)
        found.append(step)
    return schedule, found


def test_offline_everything_is_due_at_multiples_and_at_the_end():
    schedule, found = stops(offline_steps=21)
    assert found == [1, 4, 7, 8, 10, 12, 14, 16, 20, 21]
    assert [step for step in found if schedule.log_due(step)] == [4, 8, 12, 16, 20, 21]
    assert [step for step in found if schedule.evaluation_due(step)] == [1, 10, 20, 21]
    assert [step for step in found if schedule.save_due(step)] == [7, 14, 21]
    assert stops(most=3, offline_steps=6)[1] == [1, 4, 6]


def test_an_interval_of_zero_is_no_evaluation():
    schedule = Schedule(Config(eval_interval=0, log_interval=4, save_interval=6, offline_steps=9, online_steps=2))
    assert not any(schedule.evaluation_due(step) for step in range(12))
    assert [schedule.next_stop(step, 100) for step in (0, 1, 4, 6, 8, 9, 10)] == [1, 4, 6, 8, 9, 11, 11]


def test_online_the_first_step_after_a_multiple_counts_and_the_boundary_is_a_stop():
    schedule, found = stops(offline_steps=6, online_steps=15, num_envs=3)
    assert found == [1, 4, 6, 9, 12, 15, 18, 21]
    assert [step for step in found if schedule.log_due(step)] == [4, 6, 9, 12, 18, 21]
    assert [step for step in found if schedule.evaluation_due(step)] == [1, 6, 12, 21]
    assert [step for step in found if schedule.save_due(step)] == [6, 9, 15, 21]
    assert [schedule.is_online(step) for step in (0, 5, 6, 9)] == [False, False, True, True]


def test_without_an_offline_phase_the_first_step_is_that_of_all_environments():
    schedule, found = stops(offline_steps=0, online_steps=8, num_envs=4)
    assert found == [4, 8]
    assert [schedule.evaluation_due(step) for step in found] == [True, True]


@pytest.mark.parametrize("interval", [1, 2, 5, 9])
@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_nothing_is_due_between_stops(interval, num_envs):
    """At whatever pace the loop goes on."""
    config = Config(offline_steps=5, online_steps=36, num_envs=num_envs, log_interval=interval)
    schedule, step, due = Schedule(config), 0, []
    while step < 41:
        step = schedule.next_stop(step, 2)
        due += [step] if schedule.log_due(step) else []
    reached = [*range(1, 6), *range(5 + num_envs, 42, num_envs)]
    wanted = {min(s for s in reached if s >= multiple) for multiple in range(interval, 42, interval)} | {5, 41}
    assert due == sorted(wanted)


def test_a_rate_leaves_the_first_call_out_and_says_how_far_the_next_should_go():
    rate = Rate()
    assert (rate.per_second, rate.per_call()) == (None, 1)
    rate.count(1, 30.0)
    assert (rate.per_second, rate.per_call()) == (None, 1)
    rate.count(10, 0.5)
    assert (rate.per_second, rate.per_call(), rate.per_call(5)) == (20.0, 10, 2)
    again = Rate(rate.seconds, rate.steps)
    assert again.per_call() == 1  # it compiles first


def test_the_end_of_the_warm_up_is_a_stop():
    """So that no call makes steps of both kinds, which take unlike times."""
    _, found = stops(offline_steps=2, online_steps=40, num_envs=2, warmup_steps=15)
    assert 18 in found  # the first tick of updates is that after 16 steps
    assert 18 not in stops(offline_steps=2, online_steps=40, num_envs=2)[1]
