"""Trainings of the rivals: they go on to the same numbers."""

import io

import pandas as pd
import torch
from torch import nn

from usam.baselines import fitting


def parts(seed: int = 0) -> dict:
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), 0.1)}


def step_of(parts: dict, last: int = 10**9):
    def step(n: int) -> dict[str, float]:
        if n == last:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=fitting.generator(5, n))
        loss = (parts["model"](x) - x.sum(1, keepdim=True)).square().mean()
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        return {"loss": loss.item()}

    return step


def test_interrupted_training_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0)
    state, whole = tmp_path / "state.pt", parts()
    table = fitting.fit(whole, 20, step_of(whole), tmp_path / "other.pt", "whole")
    try:
        broken = parts()
        fitting.fit(broken, 20, step_of(broken, last=7), state, "broken")
    except KeyboardInterrupt:
        pass
    assert state.exists()
    again = parts(seed=1)  # other weights: those of the state count
    rest = fitting.fit(again, 20, step_of(again), state, "again")
    assert rest.equals(table) and table["step"].tolist() == list(range(1, 21))
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].parameters(), again["model"].parameters(), strict=True))
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_damaged_state_is_ignored(tmp_path):
    state, one, other = tmp_path / "state.pt", parts(), parts()
    state.write_bytes(b"PK no state")
    fresh = fitting.fit(one, 5, step_of(one), tmp_path / "none.pt", "fresh")
    assert fitting.fit(other, 5, step_of(other), state, "damaged").equals(fresh)


def test_a_state_of_another_kind_changes_nothing(tmp_path):
    state, one, other = tmp_path / "state.pt", parts(), parts()
    fitting._save({"model": nn.Linear(4, 1), "optimizer": one["optimizer"]}, [{"step": 1, "loss": 0.0}], state)
    fresh = fitting.fit(one, 5, step_of(one), tmp_path / "none.pt", "fresh")
    assert fitting.fit(other, 5, step_of(other), state, "other").equals(fresh)


def test_no_step_leaves_an_empty_table(tmp_path):
    one = parts()
    table = fitting.fit(one, 0, step_of(one), tmp_path / "none.pt", "nothing")
    assert table.empty and pd.read_csv(io.StringIO(table.to_csv(index=False))).columns.tolist() == ["step"]


def test_places_have_their_own_chance():
    def drawn(*place):
        return torch.rand(4, generator=fitting.generator(*place))

    assert torch.equal(drawn(1, 2), drawn(1, 2))
    assert not torch.equal(drawn(1, 2), drawn(2, 1)) and not torch.equal(drawn(1, 2), drawn(1, 3))
