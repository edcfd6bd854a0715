"""The arithmetic that "auto" chooses, by what the processor has units for."""

import pytest
import torch

from usam import machine, profiles


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", "bf16"])
def test_units_for_bfloat16_decide(monkeypatch, unit):
    for there, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: {unit: there, "avx512_f": True})
        assert machine.best_precision.__wrapped__("cpu") == expected


def test_this_machine_says_what_it_computes_with():
    smoke = profiles.load("smoke")
    expected = machine.best_precision(machine.device().type)
    assert expected in ("float32", "bfloat16")
    assert smoke.sam.precision == smoke.clip.precision == smoke.head.precision == expected
    assert smoke.sources["synthetic"].settings.precision == expected
    assert smoke.decisive()["sam"]["precision"] == expected  # what runs.csv notes
