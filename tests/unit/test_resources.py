"""What `Resources` accepts, keeps and refuses, and how it is read."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import pytest

from flyte_celery.devices import GPU, TPU, Device
from flyte_celery.resources import Resources


def resources(field: str, value: object) -> Resources:
    options: dict[str, Any] = {field: value}
    return Resources(**options)


CPUS = [0, 1, 1.5, True, float("inf"), "500m", "2", "", "lots", "-1", ("1", "2"), (1, "2"), (4, 1), (True, 1.5)]
MEMORIES = ["4Gi", "", "lots", ("2Gi", "8Gi"), ("8Gi", "2Gi")]


@pytest.mark.parametrize("field", ["cpu", "memory", "gpu", "disk", "shm"])
def test_nothing_is_asked_for_by_default(field: str) -> None:
    assert getattr(Resources(), field) is None
    assert getattr(resources(field, None), field) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("cpu", value) for value in CPUS]
    + [("memory", value) for value in MEMORIES]
    + [("disk", value) for value in ("10Gi", "", "lots")]
    + [("shm", value) for value in ("2Gi", "", "lots", "auto")],
)
def test_what_is_possible_is_kept_as_written(field: str, value: object) -> None:
    assert getattr(resources(field, value), field) == value


def test_cpu_may_be_not_a_number() -> None:
    """Accepted as in Flyte; reading it as cores is the error."""
    value = resources("cpu", float("nan"))
    assert isinstance(value.cpu, float)
    assert math.isnan(value.cpu)


IMPOSSIBLE: dict[str, list[Any]] = {
    "cpu": [
        -1,
        -0.5,
        (-1, 2),
        (1, -2),
        [1, 2],
        {},
        b"1",
        (1,),
        (1, 2, 3),
        (),
        (None, 2),
        (1, None),
        ((1, 2), 3),
        ({}, 1),
    ],
    "memory": [
        1,
        0,
        1.5,
        True,
        ["1Gi", "2Gi"],
        {},
        b"1",
        ("1Gi",),
        ("1Gi", "2Gi", "3Gi"),
        (),
        (1, 2),
        ("1Gi", None),
        (None, "1Gi"),
    ],
    "disk": [1, 1.5, True, ("1Gi", "2Gi"), ["1Gi"], b"1"],
    "shm": [1, 1.5, True, False, ("1Gi", "2Gi"), ["1Gi"], b"1"],
    "gpu": [-1, 1.5, -0.5, float("nan"), (1, 2), ("T4:1",), (), [1], ["T4:1"], {}, b"1"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in IMPOSSIBLE.items() for value in values]
)
def test_what_is_impossible_is_a_value_error_that_names_field_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}=") as info:
        resources(field, value)
    assert repr(value) in str(info.value)


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="foo"):
        resources("foo", 1)


def test_the_positional_order_is_promised() -> None:
    assert dataclasses.astuple(Resources(1, "2Gi", "T4:1", "3Gi", "auto")) == (1, "2Gi", "T4:1", "3Gi", "auto")


def test_resources_equal_by_value_and_are_not_hashable() -> None:
    assert Resources(cpu=1) == Resources(cpu=1)
    assert Resources(cpu=1) != Resources(cpu="1")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Resources())


# -- Accelerators ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        (None, None),
        (0, None),
        (False, None),
        ("0", None),
        (2, Device(2, "GPU")),
        (True, Device(1, "GPU")),
        (100, Device(100, "GPU")),
        ("1", Device(1, "GPU")),
        ("8", Device(8, "GPU")),
        ("A100:8", Device(8, "GPU", "A100")),
        ("Trn1:4", Device(4, "NEURON", "Trn1")),
        ("Inf1:16", Device(16, "NEURON", "Inf1")),
        ("MI300X:1", Device(1, "AMD_GPU", "MI300X")),
        ("Gaudi1:1", Device(1, "HABANA_GAUDI", "Gaudi1")),
        ("L40s:1", Device(1, "GPU", "L40s")),
        ("L40S shared:1", Device(1, "GPU", "L40S shared")),
        ("AppleSilicon", Device(1, "APPLE_SILICON", "AppleSilicon")),
        ("AppleSilicon:1", Device(1, "APPLE_SILICON", "AppleSilicon")),
        (GPU("A100", 1, "1g.5gb"), Device(1, "GPU", "A100", "1g.5gb")),
        (TPU("V5P", "2x2x1"), Device(1, "TPU", "V5P", "2x2x1")),
        (Device(3, "GPU"), Device(3, "GPU")),
    ],
)
def test_every_way_to_ask_for_accelerators_gives_a_device(gpu: Any, device: Device | None) -> None:
    assert Resources(gpu=gpu).get_device() == device


@pytest.mark.parametrize(
    ("gpu", "kept"), [("A100:8", "A100:8"), ("AppleSilicon", "AppleSilicon"), ("AppleSilicon:1", "AppleSilicon:1")]
)
def test_an_accelerator_is_kept_as_written(gpu: str, kept: str) -> None:
    assert Resources(gpu=gpu).gpu == kept


def test_a_string_of_digits_is_kept_as_a_count() -> None:
    assert Resources(gpu="1") == Resources(gpu=1)


@pytest.mark.parametrize(
    "gpu",
    [
        "A100:9",
        "A100:0",
        "T4",
        "",
        "t4:1",
        " T4:1",
        "T4:1 ",
        "banana:1",
        "L40S:1",
        "V5P:1",
        "AppleSilicon:2",
        " 1",
        "-1",
        "1.5",
        "\u0663",
        "\u00b2",
    ],
)
def test_another_string_is_a_value_error(gpu: str) -> None:
    with pytest.raises(ValueError, match="is no accelerator"):
        Resources(gpu=gpu)


@pytest.mark.parametrize(("old", "new"), [("A100 80G:2", "A100_80G:2"), ("RTX PRO 6000:1", "RTX_PRO_6000:1")])
def test_an_old_spelling_is_replaced_with_one_warning(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    asked = Resources(gpu=old)
    assert asked.gpu == new
    assert asked.get_device() == Resources(gpu=new).get_device()
    assert [(record.name, record.levelno) for record in caplog.records] == [("flyte_celery", logging.WARNING)]


@pytest.mark.parametrize("gpu", ["bogus", -1, 1.5])
def test_an_impossible_assignment_is_found_when_it_is_read(gpu: Any) -> None:
    changed = Resources()
    changed.gpu = gpu
    with pytest.raises(ValueError, match="gpu="):
        changed.get_device()


@pytest.mark.parametrize(("shm", "read"), [("auto", ""), ("2Gi", "2Gi"), (None, None)])
def test_shared_memory_is_a_quantity_or_left_to_the_machine(shm: str | None, read: str | None) -> None:
    assert Resources(shm=shm).get_shared_memory() == read


# -- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "request_and_limit"),
    [
        (None, (None, None)),
        (2, (2.0, 2.0)),
        (0.5, (0.5, 0.5)),
        ("500m", (0.5, 0.5)),
        ((1, 4), (1.0, 4.0)),
        (("500m", 2), (0.5, 2.0)),
        ((4, 1), (4.0, 1.0)),
    ],
)
def test_cpu_is_read_in_cores(cpu: Any, request_and_limit: tuple[float | None, float | None]) -> None:
    asked = Resources(cpu=cpu)
    assert (asked.cpu_request(), asked.cpu_limit()) == request_and_limit


@pytest.mark.parametrize(
    ("memory", "request_and_limit"),
    [
        (None, (None, None)),
        ("4Gi", (4 * 1024**3, 4 * 1024**3)),
        (("2Gi", "8G"), (2 * 1024**3, 8 * 1000**3)),
        ("1048576", (1048576, 1048576)),
    ],
)
def test_memory_is_read_in_bytes(memory: Any, request_and_limit: tuple[int | None, int | None]) -> None:
    asked = Resources(memory=memory)
    assert (asked.memory_request(), asked.memory_limit()) == request_and_limit


@pytest.mark.parametrize("cpu", ["lots", "", "-1", float("nan"), float("inf")])
def test_cpu_that_is_no_quantity_is_found_when_it_is_read(cpu: Any) -> None:
    for asked in (Resources(cpu=cpu), Resources(cpu=(cpu, cpu))):
        for read in (asked.cpu_request, asked.cpu_limit):
            with pytest.raises(ValueError, match=f"cpu={cpu!r}"):
                read()


@pytest.mark.parametrize("memory", ["lots", "", "-1Gi"])
def test_memory_that_is_no_quantity_is_found_when_it_is_read(memory: Any) -> None:
    for asked in (Resources(memory=memory), Resources(memory=(memory, memory))):
        for read in (asked.memory_request, asked.memory_limit):
            with pytest.raises(ValueError, match=f"memory={memory!r}"):
                read()
