"""The arithmetic that "auto" chooses: by what the processor has units for, and how fast they are."""

import pytest
import torch

from usam import machine, profiles

UNITS = {"avx512_bf16": True, "amx_bf16": False, "avx512_f": True}
SECONDS = {torch.float32: {"matrix": 4.0, "convolution": 4.0}, torch.bfloat16: {"matrix": 1.0, "convolution": 2.0}}


def chosen(monkeypatch, units: dict[str, bool], seconds: dict) -> str:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    names = {machine._matrix_product: "matrix", machine._convolution: "convolution"}
    monkeypatch.setattr(machine, "_seconds", lambda step, kind: seconds[kind][names[step]])
    return machine.best_precision.__wrapped__("cpu")


def test_without_units_for_bfloat16_nothing_is_timed(monkeypatch):
    assert chosen(monkeypatch, {"avx512_f": True, "amx_bf16": False}, {}) == "float32"


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", "bf16"])
def test_with_units_that_are_faster(monkeypatch, unit):
    assert chosen(monkeypatch, {unit: True}, SECONDS) == "bfloat16"


def test_units_whose_convolutions_are_slow(monkeypatch):
    slow = SECONDS | {torch.bfloat16: {"matrix": 1.0, "convolution": 9.0}}
    assert chosen(monkeypatch, UNITS, slow) == "float32"


def test_this_machine_says_what_it_computes_with():
    smoke = profiles.load("smoke")
    expected = machine.best_precision(machine.device().type)
    assert expected in ("float32", "bfloat16")
    assert smoke.sam.precision == smoke.clip.precision == smoke.head.precision == expected
    assert smoke.sources["synthetic"].settings.precision == expected
    assert smoke.decisive()["sam"]["precision"] == expected  # what runs.csv notes


def test_timing_takes_the_three_steps_after_the_first():
    calls = []
    assert machine._seconds(lambda kind: calls.append(kind), torch.float32) >= 0
    assert calls == [torch.float32] * 4


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_is_timed_computes(kind):
    assert (machine._matrix_product(kind) == 512).all() and machine._convolution(kind)[0, 0, 5, 5] == 64 * 9
