"""What resources mean for a replica, whose fault a breach is, and when a replica is replaced."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flyte_celery.errors import OOMError, ResourceExhaustedError
from flyte_celery.resources import Resources
from flyte_celery.settings import Settings
from flyte_celery.supervisor.watchdog import Bound, Breach, Usage
from flyte_celery.worker import breaches
from flyte_celery.worker.bounds import Machine, Share, confinement, share, thread_variables, unenforced
from flyte_celery.worker.recycling import Life, Recycling

MIB = 2**20
SETTINGS = Settings()


@pytest.mark.parametrize(
    ("resources", "memory", "cores"),
    [
        (None, None, None),
        (Resources(), None, None),
        (Resources(memory="256Mi", cpu="500m"), 256 * MIB, 0.5),
        (Resources(memory=("64Mi", "1Gi"), cpu=(1, 4)), 1024 * MIB, 4.0),
        (Resources(memory="0", cpu=0), None, None),
    ],
    ids=str,
)
def test_limits_are_the_second_parts(resources: Resources | None, memory: int | None, cores: float | None) -> None:
    found = confinement(resources, SETTINGS)
    assert (found.memory, found.cores, found.processes, found.files) == (memory, cores, 1000, 65536)


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory="lots"),
        Resources(memory=("8Gi", "2Gi")),
        Resources(memory="-1Gi"),
        Resources(cpu="many"),
        Resources(cpu=(4, 1)),
        Resources(cpu=float("nan")),
        Resources(disk="big"),
        Resources(shm="much"),
    ],
    ids=str,
)
def test_what_flyte_takes_and_nobody_can_give_is_refused(resources: Resources) -> None:
    with pytest.raises(ValueError, match=r"(memory|cpu|disk|shm)="):
        confinement(resources, SETTINGS)


def test_ephemeral_replicas_fit_by_their_requests() -> None:
    """Requests say how many fit, limits what each may use."""
    machine = Machine(cores=4, memory=1000 * MIB)
    assert machine.holds(share(Resources(cpu=(1, 4), memory=("300Mi", "1Gi")), 1.0)) == 3
    assert machine.holds(share(None, 1.0)) == 4
    assert machine.holds(share(Resources(memory="64Gi"), 1.0)) == 1, "one may always run"
    assert machine.holds(Share()) == 4
    assert machine.fits(Share(1, 0), [Share(3, 0)])
    assert not machine.fits(Share(1.5, 0), [Share(3, 0)])
    assert not machine.fits(Share(0, 600 * MIB), [Share(0, 500 * MIB)])


def test_thread_variables_match_the_limit_of_cores_unless_they_are_set() -> None:
    assert thread_variables(None, {}) == thread_variables(Resources(memory="1Gi"), {}) == {}
    assert set(thread_variables(Resources(cpu=("500m", "2500m")), {}).values()) == {"2"}
    assert set(thread_variables(Resources(cpu="200m"), {}).values()) == {"1"}
    assert "OMP_NUM_THREADS" not in thread_variables(Resources(cpu=2), {"OMP_NUM_THREADS": "8"})


def test_what_nothing_limits_is_said() -> None:
    assert unenforced(None) == unenforced(Resources(cpu=2, memory="1Gi", shm="auto")) == ()
    (text,) = unenforced(Resources(disk="1Gi", shm="2Gi", cpu="1500m"))
    assert all(part in text for part in ("disk='1Gi'", "shm='2Gi'", "cpu='1500m'"))


# -- Whose fault it is -----------------------------------------------------------------------------------------------


def _job(number: int, accepted_at: float | None = 5.0) -> Any:
    return SimpleNamespace(number=number, accepted_at=accepted_at, terminated=False, words=f"env.task[{number}]")


def _replica(*jobs: Any, served: int = 0, suspended: tuple[int, ...] = ()) -> Any:
    return SimpleNamespace(
        jobs={job.number: job for job in jobs},
        suspended=set(suspended),
        served=served,
        child=SimpleNamespace(ready_at=1.0),
        breach=None,
    )


#: 10 MiB when it became ready, 20 when the task began, then up.
CLEAN = Breach(Bound.MEMORY, 300 * MIB, 256 * MIB, ((0.5, 10 * MIB), (4.0, 20 * MIB), (6.0, 150 * MIB)))
#: 200 MiB were there when the task began.
LEFT = replace(CLEAN, history=((0.5, 10 * MIB), (4.0, 200 * MIB)))


def test_the_only_task_of_a_replica_is_at_fault() -> None:
    job = _job(1)
    assert breaches.at_fault(_replica(job), LEFT) is job, "nobody was there before it"
    assert breaches.at_fault(_replica(job, served=9), CLEAN) is job
    assert breaches.at_fault(_replica(job, _job(2, None), _job(3), suspended=(3,)), CLEAN) is job


def test_nobody_is_blamed_for_others() -> None:
    assert breaches.at_fault(_replica(_job(1), _job(2)), CLEAN) is None
    assert breaches.at_fault(_replica(_job(1), served=9), LEFT) is None
    assert breaches.at_fault(_replica(), CLEAN) is None


def test_all_others_run_again() -> None:
    one, two, unbegun = _job(1), _job(2), _job(3, None)
    replica = _replica(one, two, unbegun)
    assert breaches.not_at_fault(replica) == [], "it was lost for another reason"
    replica.breach = CLEAN
    assert breaches.not_at_fault(replica) == [one, two]
    alone = _replica(one)
    alone.breach = CLEAN
    assert breaches.not_at_fault(alone) == []


def test_the_failure_says_what_was_used_and_what_to_do() -> None:
    failure = breaches.failure(_job(1), CLEAN, "env@host")
    assert isinstance(failure, OOMError) and failure.code == "OOMKilled"
    assert all(part in str(failure) for part in ("env.task[1]", "256.0 MiB", "300.0 MiB", "env@host", "override("))
    kernel = breaches.failure(_job(1), Breach(Bound.KERNEL, MIB, None), "env@host")
    assert isinstance(kernel, OOMError) and "no limit of its own" in str(kernel)
    assert isinstance(breaches.failure(_job(1), Breach(Bound.PROCESSES, 101, 100), "h"), ResourceExhaustedError)


# -- Recycling -------------------------------------------------------------------------------------------------------


def test_a_replica_is_replaced_for_any_of_its_bounds() -> None:
    life = Life.begun(Recycling(max_memory=100 * MIB, max_age=3600.0, files=1000), 200, now=50.0)
    fine = Usage(memory=100 * MIB, processes=1, files=800)
    assert life.over(100, fine, 60.0) is None
    assert "tasks" in (life.over(180, fine, 60.0) or "")
    assert "101 MiB" in (life.over(1, replace(fine, memory=101 * MIB), 60.0) or "")
    assert "files" in (life.over(1, replace(fine, files=801), 60.0) or "")
    assert "age" in (life.over(1, fine, 50.0 + 3600.0) or "")


def test_replicas_that_began_together_do_not_go_together() -> None:
    lives = [Life.begun(Recycling(max_age=3600.0), None, now=0.0) for _ in range(100)]
    ends = [life.until for life in lives]
    assert all(end is not None and 3240.0 <= end <= 3600.0 for end in ends)
    assert len(set(ends)) > 50


@pytest.mark.parametrize("most", [None, 1])
def test_an_ephemeral_replica_is_never_replaced_for_its_tasks(most: int | None) -> None:
    assert Life.begun(Recycling(), most, now=0.0).over(1000, Usage(), 1e9) is None


def test_the_replacement_is_started_before_the_last_task() -> None:
    for most in (2, 5, 100):
        for _ in range(100):
            tasks = Life.begun(Recycling(), most, now=0.0).tasks
            assert tasks is not None and 1 <= tasks < most
