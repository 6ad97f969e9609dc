"""The code blocks of the documents that this project follows run unchanged but for their import lines.

`spec/` has the blocks as data. Names that a document leaves to its reader (a model, a parent's environment) are given
by each test before the block runs. Blocks whose feature is still to come are strict expected failures: they turn the
test run red on the day when they pass, so that the mark is removed.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery import embedded
from tests.helpers.workers import Worker, run_python, write_module

SPEC = Path(__file__).parent / "spec"
BLOCKS = sorted(path.name.removesuffix(".indented.txt") for path in SPEC.glob("*.indented.txt"))

#: The only change to a block: which package its import lines name.
_IMPORTS = (
    (re.compile(r"^import flyte$", re.MULTILINE), "import flyte_celery as flyte"),
    (re.compile(r"^from flyte\.app import", re.MULTILINE), "from flyte_celery.app import"),
    (re.compile(r"^from your_module import", re.MULTILINE), "from flyte_celery import"),
)

_numbers = itertools.count()


def source(name: str) -> str:
    """A block's text with its import lines redirected."""
    text = (SPEC / f"{name}.indented.txt").read_text()
    for pattern, replacement in _IMPORTS:
        text = pattern.sub(replacement, text)
    return text


def run_block(name: str, **given: Any) -> dict[str, Any]:
    """Execute a block as a module of its own, and return its names; `given` are those that the reader brings."""
    # The file name differs each time: environments are told apart by the place of their definition.
    names: dict[str, Any] = {"flyte": flyte, "__name__": f"spec_{name}_{next(_numbers)}", **given}
    exec(compile(source(name), f"{name}-{next(_numbers)}.py", "exec"), names)
    return names


@pytest.mark.parametrize("name", BLOCKS)
def test_only_whitespace_of_a_block_was_changed(name: str) -> None:
    """The documents have lost their indentation, and one line break."""
    original = (SPEC / f"{name}.original.txt").read_text()
    assert "".join(original.split()) == "".join((SPEC / f"{name}.indented.txt").read_text().split())


def test_every_block_has_a_test() -> None:
    """A block that is added to the folder and forgotten here would not run."""
    own = Path(__file__).read_text()
    assert [name for name in BLOCKS if f'"{name}"' not in own] == []


# -- 000: Container Reuse & Scaling ----------------------------------------------------------------------------------


def test_000_a_warm_pool_for_gpu_tasks() -> None:
    """The first block of the first document."""
    env = run_block("000_warm_pool")["gpu_env"]
    assert (env.reusable.min_replicas, env.reusable.max_replicas, env.reusable.concurrency) == (1, 5, 10)
    assert env.reusable.idle_ttl == timedelta(minutes=5)
    assert env.resources.get_device() == flyte.GPU("L4", 1)


def test_000_resources_of_a_reusable_task_are_overridden_only_with_reuse_off() -> None:
    """The first statement raises ValueError, as the block's comment says; the second one works."""
    env = flyte.TaskEnvironment(name="spec-overrides", reusable=flyte.ReusePolicy())
    my_task = env.task(_noop)
    with pytest.raises(ValueError, match="resources"):
        run_block("000_overrides", my_task=my_task)
    correct = source("000_overrides").split("# Correct way to override resources for a specific call\n")[1]
    overridden = eval(correct, {"my_task": my_task, "flyte": flyte})
    assert (overridden.reusable, overridden.resources) == (None, flyte.Resources(cpu="4"))


async def _noop() -> None: ...


@pytest.mark.xfail(raises=ModuleNotFoundError, reason="flyte_celery.app does not exist yet", strict=True)
def test_000_a_scaled_app() -> None:
    """Served apps are still to come."""
    importlib.import_module("flyte_celery.app")  # before FastAPI, which the mark must not excuse
    fastapi = importlib.import_module("fastapi")
    app_env = run_block("000_app", my_fastapi_app=fastapi.FastAPI())["app_env"]
    assert app_env.scaling.get_replicas() == (0, 2)


@pytest.mark.xfail(raises=ModuleNotFoundError, reason="flyte_celery.app does not exist yet", strict=True)
@pytest.mark.parametrize("replicas", [(0, 1), (1, 1), (1, 10), (2, 10)])
def test_000_scaling_patterns(replicas: tuple[int, int]) -> None:
    """`Scaling(replicas=...)` as the list of patterns shows it."""
    scaling = importlib.import_module("flyte_celery.app").Scaling
    assert scaling(replicas=replicas).get_replicas() == replicas


# -- 001: Reusable containers ----------------------------------------------------------------------------------------


def test_001_a_policy() -> None:
    """A fixed number of replicas is both bounds."""
    policy = run_block("001_policy")["reuse_policy"]
    assert (policy.min_replicas, policy.max_replicas, policy.idle_ttl) == (3, 3, timedelta(minutes=10))


def test_001_a_model_is_loaded_once_per_process() -> None:
    """`gpu="1"` counts as one GPU of any kind."""
    loads: list[int] = []

    class Model:
        def predict(self, data: list[float]) -> float:
            return sum(data)

    def load_expensive_model() -> Model:
        loads.append(1)
        return Model()

    names = run_block("001_inference", load_expensive_model=load_expensive_model)
    predict = names["predict"]
    assert [asyncio.run(predict([1.0, each])) for each in (2.0, 3.0)] == [3.0, 4.0]
    assert len(loads) == 1
    assert names["ml_env"].resources.get_device() == flyte.Resources(gpu=1).get_device()


def test_001_stateless_and_stateful_tasks() -> None:
    """What the document advises against works too."""
    env = flyte.TaskEnvironment(name="spec-state", reusable=flyte.ReusePolicy())
    names = run_block("001_stateless", env=env, transform_data=lambda data: {**data, "seen": True})
    assert asyncio.run(names["process_data"]({"id": "a"})) == {"id": "a", "seen": True}
    assert asyncio.run(names["stateful_task"]({"id": "a"})) == {"id": "a"}
    assert names["cache"] == {"a": {"id": "a"}}


def test_001_resource_sizing() -> None:
    """The environment is as it was written."""
    env = run_block("001_sizing")["env"]
    assert (env.name, env.resources) == ("optimized", flyte.Resources(memory="1Gi", cpu="500m"))
    assert env.reusable == flyte.ReusePolicy(replicas=3, idle_ttl=600)


def test_001_blocks_run_without_a_broker(tmp_path: Path) -> None:
    """`main` and the workflow run in the calling process too, as they do in Flyte without a client."""
    write_module(tmp_path, source("001_basic"), "basic")
    write_module(tmp_path, _HEAD + _BATCH + source("001_batch"), "batch")
    code = """
        import asyncio, flyte_celery as flyte
        flyte.init()
        import basic, batch
        print(flyte.run(basic.main).outputs()[0])
        print(asyncio.run(batch.batch_workflow([{"data": 1}])))
    """
    printed = run_python(tmp_path, code).splitlines()
    assert printed == [str([x * x for x in range(10)]), "[{'processed': 1, 'result': 2}]"]


# -- 002: ReusePolicy ------------------------------------------------------------------------------------------------


def test_002_example() -> None:
    """`replicas=(1, 3), concurrency=2` supports up to 6 concurrent tasks, as the document computes."""
    policy = run_block("002_example")["env"].reusable
    assert policy.max_replicas * policy.concurrency == 6
    assert policy.get_scaledown_ttl() == timedelta(seconds=30)


def test_002_signature() -> None:
    """The parameters are those of the document, in its order; `scope` came later and stands last."""
    shown = re.findall(r"^\s*(\w+):", (SPEC / "002_signature.original.txt").read_text(), re.MULTILINE)
    assert list(inspect.signature(flyte.ReusePolicy).parameters) == [*shown, "scope"]


# -- 003: Reusable Task Environments ---------------------------------------------------------------------------------


def test_003_default_policy() -> None:
    """The block's comments state the defaults."""
    policy = run_block("003_default")["policy"]
    assert (policy.min_replicas, policy.max_replicas, policy.concurrency) == (2, 2, 1)
    assert policy.idle_ttl == timedelta(seconds=30)


def test_003_custom_policies() -> None:
    """Both policies of the block."""
    names = run_block("003_custom")
    high, low = names["high_concurrency_policy"], names["cost_sensitive_policy"]
    assert (high.replicas, high.concurrency, high.scaledown_ttl) == ((2, 5), 10, timedelta(minutes=2))
    assert (low.replicas, low.idle_ttl, low.concurrency) == ((1, 1), timedelta(minutes=1), 1)


# -- 004: Core Execution Framework -----------------------------------------------------------------------------------


@pytest.fixture
def base() -> dict[str, Any]:
    """The document's first block, which its next ones build on."""
    return run_block("004_environment")


def test_004_an_environment_and_its_task(base: dict[str, Any]) -> None:
    """The fully-qualified name is the one that the document tells."""
    assert base["process_data"].name == "data-processing.process_data"
    assert asyncio.run(base["process_data"]([1, 2, 3])) == 6


def test_004_inheritance(base: dict[str, Any]) -> None:
    """The clone has the parent's image and its own resources and cache."""
    clone = run_block("004_clone", base_env=base["base_env"])["gpu_env"]
    assert clone.image == base["base_env"].image
    assert clone.resources.get_device() == flyte.GPU("T4", 1)
    assert clone.cache == "auto"


def test_004_sync_and_async_tasks(base: dict[str, Any]) -> None:
    """Both kinds are templates of one class and run."""
    names = run_block("004_sync_async", base_env=base["base_env"])
    assert names["sync_task"](1) == asyncio.run(names["async_task"](1)) == 2
    assert type(names["sync_task"]) is type(names["async_task"])


def test_004_options_of_a_task(base: dict[str, Any]) -> None:
    """Cache, retries and timeout at the task beat the environment's."""
    task = run_block("004_flaky", base_env=base["base_env"])["flaky_task"]
    assert (task.cache.behavior, task.retries.count, task.timeout) == ("auto", 3, 600)


def test_004_resources_and_accelerators() -> None:
    """Every form that the document lists, the pair of request and limit included."""
    assert run_block("004_resources")["resources"].get_shared_memory() == "2Gi"
    names = run_block("004_accelerators")
    devices = [names[name].get_device() for name in ("gpu_res", "mig_res", "tpu_res")]
    assert devices == [flyte.GPU("A100", 1), flyte.GPU("A100", 1, "1g.5gb"), flyte.TPU("V5P", "2x2x1")]
    assert flyte.Resources(cpu=(1, 4), memory=("2Gi", "8Gi")).cpu == (1, 4)


def test_004_reuse() -> None:
    """The policy is as it was written."""
    env = run_block("004_reuse")["env"]
    assert env.reusable == flyte.ReusePolicy(replicas=(1, 5), concurrency=2, idle_ttl=300)


def test_004_a_task_that_raises_oom_error_is_called_again_with_more_memory() -> None:
    """The block's control flow; for the platform's part of it see below."""
    env = flyte.TaskEnvironment(name="spec-retry", resources=flyte.Resources(memory="4Gi"))
    calls: list[str] = []

    async def process_data(data: list[int]) -> int:
        calls.append("again" if calls else "first")
        if len(calls) == 1:
            raise flyte.errors.OOMError("OOMKilled", "out of memory")
        return sum(data)

    asyncio.run(run_block("004_retry", process_data=env.task(process_data))["run_with_retry"](5))
    assert calls == ["first", "again"]


# -- Against real workers --------------------------------------------------------------------------------------------

_PROJECT = """
from __future__ import annotations

import flyte_celery as flyte

app = flyte.init()

import basic, batch, migration, retry
"""

_HEAD = "import flyte_celery as flyte\n"

_BATCH = 'def transform(item):\n    return item["data"] * 2\n\n\n'

# The document's own `env` has concurrency=2, which its text forbids for sync tasks.
_MIGRATION = """
import asyncio

env = flyte.TaskEnvironment(name="migration", reusable=flyte.ReusePolicy(replicas=(1, 4)))
"""

#: Needs more memory than it may have, in each attempt but the one that may have enough.
_RETRY = """
env = flyte.TaskEnvironment(name="retry", resources=flyte.Resources(memory="64Mi"))


@env.task
async def process_data(data: list[int]) -> int:
    with open("attempts", "a") as attempts:
        attempts.write("+")
    block = bytearray(data[0] * 1024 * 1024)
    return len(block)


@env.task
async def main(megabytes: int) -> None:
    await run_with_retry(megabytes)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project made of the blocks that have something to run, served by `env up`."""
    folder = tmp_path_factory.mktemp("spec")
    modules = {
        "basic": source("001_basic"),
        "batch": _HEAD + _BATCH + source("001_batch"),
        "migration": _HEAD + _MIGRATION + source("004_migration"),
        "retry": _HEAD + textwrap.dedent(_RETRY) + source("004_retry"),
        "proj": textwrap.dedent(_PROJECT),
    }
    for name, text in modules.items():
        write_module(folder, text, name)
    worker = Worker(folder, ["-A", "proj", "env", "up", "--no-flower"])
    try:
        for environment in ("reusable-env", "batch-processor", "migration", "retry"):
            worker.wait_for_log(f"{environment}@")
        yield folder
    except BaseException:
        print(worker.log_tail())
        raise
    finally:
        worker.terminate()
        worker.wait()
        worker.destroy()
        embedded.stop(folder)


def test_001_main_runs_on_a_worker(project: Path) -> None:
    """A parent with ten children of its own environment, one after the other."""
    printed = run_python(project, "import proj, basic; print(basic.main.delay().get(timeout=30))")
    assert printed.split("\n")[0] == str([x * x for x in range(10)])


def test_001_the_batch_workflow_runs_on_a_worker(project: Path) -> None:
    """`flyte.map_task(task)(item=items)` under `@flyte.workflow`, names of Flyte 1, submit to the environment."""
    code = """
        import asyncio, proj, batch
        print(asyncio.run(batch.batch_workflow([{"data": 1}, {"data": 2}])))
        print(proj.flyte.run(batch.batch_workflow, [{"data": 3}]).outputs()[0])
    """
    assert run_python(project, code).splitlines() == [
        "[{'processed': 1, 'result': 2}, {'processed': 2, 'result': 4}]",
        "[{'processed': 3, 'result': 6}]",
    ]


def test_004_sync_children_are_awaited_on_a_worker(project: Path) -> None:
    """`legacy_sync_task.aio(x)` in an async parent, gathered."""
    code = "import proj, migration; print(migration.modern_parent_task.delay([1, 2, 3]).get(timeout=30))"
    assert run_python(project, code).strip() == "[2, 4, 6]"


def test_004_a_task_that_runs_out_of_memory_is_retried_with_more(project: Path) -> None:
    """64 MiB are not enough for 200 MiB, 16 GiB are: two attempts."""
    run_python(project, "import proj, retry; retry.main.delay(200).get(timeout=30)")
    assert (project / "attempts").read_text() == "++"
