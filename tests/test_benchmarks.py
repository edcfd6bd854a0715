"""`python -m benchmarks`: small runs of its steps, and what it measures beside them."""

import subprocess
import sys

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Work, compare
from usam import paths


def test_a_table_with_a_row_for_each_way(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "sam-mini", "training", "--images", "4", "--rounds", "1"]
    run = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.strip("| \n").split(" | ") for line in run.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 + 2 and {len(row) for row in rows[2:]} == {7}
    rates = [float(row[2].split()[0].replace(",", "")) for row in rows[2:5]]
    ratios = [float(row[3].removesuffix(" x")) for row in rows[2:5]]
    assert ratios[2] == 1 and ratios == pytest.approx([rate / rates[2] for rate in rates], rel=0.02)  # of what is shown
    assert all(float(row[5].rstrip("%")) > 0 and float(row[6]) > 0.1 for row in rows[2:])


def test_no_such_step():
    run = subprocess.run([sys.executable, "-m", "benchmarks", "flight"], cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "no step flight: choose from sam-mini" in run.stderr


def test_rounds_take_turns_and_operations_are_counted():
    order, a = [], torch.ones(8, 16)
    works = [
        Work(name, lambda name=name: order.append(name), 10, "things", "float32", lambda: a @ a.T, 5) for name in "xy"
    ]
    results = compare(works, 2)
    assert order == ["x", "y", "x", "y", "x", "y"]  # the first of each warms up
    assert [r.operations for r in results] == [5 * 2 * 8 * 8 * 16] * 2 and all(len(r.seconds) == 2 for r in results)
    results[0].seconds[:] = [1.0, 4.0]
    assert results[0].rate == pytest.approx(10 / 2.5)


def test_the_rate_of_matrix_products_is_one():
    assert 1e9 < measure.matmul_rate("float32", 0.2) < 1e15
