"""The state tables: every pair, legal or not, and that the ends are ends."""

import itertools

import pytest

from flowmonkeyd import lifecycle
from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.model import ExecutionStatus

MOVES = sorted({move for _, move in lifecycle.EXECUTION})
TASK_STATES = sorted({state for state, _ in lifecycle.TASK} | {"gone"})
TASK_MOVES = sorted({move for _, move in lifecycle.TASK})
JOB_MOVES = sorted({move for _, move in lifecycle.JOB})


@pytest.mark.parametrize(("status", "move"), list(itertools.product(ExecutionStatus, MOVES)))
def test_an_execution_moves_only_as_the_table_says(status, move):
    if (status, move) in lifecycle.EXECUTION:
        assert lifecycle.execution_after(status, move) is lifecycle.EXECUTION[status, move]
    else:
        with pytest.raises(lifecycle.IllegalMove, match=f"{status.value} cannot {move}"):
            lifecycle.execution_after(status, move)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(TASK_STATES, TASK_MOVES)))
def test_a_task_moves_only_as_the_table_says(state, move):
    if (state, move) in lifecycle.TASK:
        assert lifecycle.task_after(state, move) == lifecycle.TASK[state, move]
    else:
        with pytest.raises(lifecycle.IllegalMove):
            lifecycle.task_after(state, move)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(JobState, JOB_MOVES)))
def test_a_job_moves_only_as_the_table_says(state, move):
    if (state, move) in lifecycle.JOB:
        assert lifecycle.job_after(state, move) is lifecycle.JOB[state, move]
    else:
        with pytest.raises(lifecycle.IllegalMove, match=f"{state.value} cannot {move}"):
            lifecycle.job_after(state, move)


def test_a_job_that_has_ended_is_only_reopened_and_a_completed_one_never():
    leaving = {(state, move) for state, move in lifecycle.JOB if state.is_final}
    assert leaving == {(JobState.FAILED, "reopen"), (JobState.CANCELLED, "reopen")}
    assert set(lifecycle.JOB.values()) == set(JobState)


def test_an_end_is_left_only_by_a_retry_and_completed_never():
    leaving = {(status, move) for status, move in lifecycle.EXECUTION if status.is_final}
    assert leaving == {(ExecutionStatus.FAILED, "retry"), (ExecutionStatus.CANCELLED, "retry")}


def test_every_status_can_be_reached():
    assert {ExecutionStatus.PENDING, *lifecycle.EXECUTION.values()} == set(ExecutionStatus)
