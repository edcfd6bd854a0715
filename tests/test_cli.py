"""The runner of notebooks and the shell script around it, on tiny notebooks and with a Python that only takes notes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from usam import cli, notebooks, paths
from usam.errors import UserError

SCRIPT = paths.ROOT / "run_all.sh"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with a space in its name, for notebooks and results."""
    (tmp_path / "a house" / "notebooks").mkdir(parents=True)
    return tmp_path / "a house"


def write(house: Path, name: str, *cells: str, tags: tuple[str, ...] = ("parameters",), **metadata: object) -> None:
    first = nbformat.v4.new_code_cell("profile = 'none'\nseed = 7", metadata={"tags": list(tags)})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, **metadata})
    content.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(content, house / "notebooks" / f"{name}.ipynb")


def plan(house: Path, key: str = "", **parameters: object) -> list[notebooks.Job]:
    parameters = {"profile": "tiny"} | parameters
    return notebooks.plan(house / "notebooks", house / "results", house / "data", parameters, key)


def names(jobs: list[notebooks.Job]) -> list[str]:
    return [job.notebook.stem for job in jobs]


def test_order_and_choice(house):
    for name in ("10_last", "02_b", "00_a"):
        write(house, name)
    write(house, "05_by_hand", usam={"interactive": True})
    jobs = plan(house)
    assert names(jobs) == ["00_a", "02_b", "10_last"]
    assert names(notebooks.choose(jobs, only="02")) == names(notebooks.choose(jobs, only="2")) == ["02_b"]
    assert names(notebooks.choose(jobs, start="02")) == ["02_b", "10_last"]
    for wrong in ("05", "x"):
        with pytest.raises(UserError, match=f"no notebook {wrong}: there are 00, 02, 10"):
            notebooks.choose(jobs, only=wrong)


def test_notebooks_that_need_what_a_profile_lacks_are_left_out(house, capsys):
    write(house, "00_a")
    write(house, "01_b", usam={"needs": "rivals"})
    rest = house / "notebooks", house / "results", house / "data", {"profile": "tiny"}, ""
    assert names(notebooks.plan(*rest, absent=["rivals", "grid"])) == ["00_a"]
    assert capsys.readouterr().out == "01_b: left out, as the profile has no key 'rivals'\n"
    assert names(notebooks.plan(*rest, absent=["grid"])) == names(notebooks.plan(*rest)) == ["00_a", "01_b"]


def test_unknown_parameter_or_no_parameters_cell_stops_before_execution(house):
    write(house, "00_a", "open('ran', 'w')")
    with pytest.raises(UserError, match=r"00_a.ipynb does not know the parameter depth: .* profile, seed"):
        plan(house, depth=3)
    write(house, "00_a", "open('ran', 'w')", tags=())
    with pytest.raises(UserError, match=r"parameter profile: .* the cell that is tagged 'parameters', which has none"):
        plan(house)
    assert not list(house.rglob("ran")) and not (house / "results").exists()


def test_keys_follow_everything_that_decides_the_result(house):
    for name in ("00_a", "01_b", "02_c"):
        write(house, name, "1")

    def keys(**options: object) -> list[str]:
        return [job.key for job in plan(house, **options)]

    before = keys()
    assert keys() == before
    assert not set(keys(seed=1)) & set(before)
    write(house, "01_b", "2")
    assert [a == b for a, b in zip(keys(), before, strict=True)] == [True, False, False]
    assert not set(keys(key="other settings, code or weights")) & set(before)


def test_executes_then_reuses_then_executes_what_changed(house, capsys):
    data = house / "data"
    write(house, "00_a", f"from pathlib import Path\nPath({str(data)!r}).mkdir(exist_ok=True)\nprint(profile, seed)")
    write(house, "01_b", "import os, sys\nprint(os.getcwd(), sys.executable)")

    def go(**options: bool) -> list[bool]:
        notebooks.run(plan(house, seed=3), **options)
        return ["reused" in line for line in capsys.readouterr().out.splitlines()]

    assert go() == [False, False]
    first, second = (nbformat.read(job.output, 4) for job in plan(house, seed=3))
    assert first.cells[-1].outputs[0].text == "tiny 3\n"
    assert second.cells[-1].outputs[0].text == f"{paths.ROOT} {sys.executable}\n"
    assert str(house) not in str([first.metadata, second.metadata])
    assert go() == [True, True]
    write(house, "01_b", "changed = True")
    assert go() == [True, False]
    data.rmdir()  # the notebooks look finished, but what they made is gone
    assert not any(notebooks.is_valid(job) for job in plan(house, seed=3))


def test_deleted_results_are_made_again(house):
    out = house / "results" / "tables" / "one.csv"
    write(house, "00_a", f"from pathlib import Path\nPath({str(out.parent)!r}).mkdir(exist_ok=True)")
    write(house, "01_b", f"open({str(out)!r}, 'w').write('1')")
    for _ in range(2):
        notebooks.run(plan(house))
        assert [notebooks.is_valid(job) for job in plan(house)] == [True, True]
        out.unlink()
        assert [notebooks.is_valid(job) for job in plan(house)] == [True, False]


def test_progress_bars_leave_their_last_state_only(house):
    bar = "import sys\nfor k in range(30):\n    print(f'\\r{k} of 29', end='', file=sys.stderr, flush=True)\n"
    write(house, "00_a", bar + "    if k % 10 == 0: print('line', k, flush=True)")
    job = plan(house)[0]
    notebooks.execute(job)
    outputs = sorted(
        (o.name, o.text.strip()) for cell in notebooks.read(job.output).cells for o in cell.get("outputs", [])
    )
    assert outputs == [("stderr", "29 of 29"), ("stdout", "line 0\nline 10\nline 20")]


def test_failing_cell_leaves_no_finished_notebook(house, monkeypatch, capsys):
    write(house, "00_a", "from usam.errors import UserError", "raise UserError('no images: run 01')")
    monkeypatch.setattr(paths, "NOTEBOOKS", house / "notebooks")
    monkeypatch.setenv("USAM_RESULTS", str(house / "results"))
    smoke = cli.profiles.load("smoke")
    monkeypatch.setattr(cli.profiles, "load", lambda name, seed=None: smoke)
    monkeypatch.setattr(cli, "inputs", lambda profile: [])
    assert cli.main(["--profile", "tiny", "--seed", "1"]) == 1
    printed = capsys.readouterr().err
    assert "usam: 00_a.ipynb, cell In [4]: no images: run 01\n" in printed and "--from 00" in printed
    assert [p.name for p in (house / "results" / "tiny" / "notebooks").iterdir()] == ["00_a.partial.ipynb"]


RUN = """
import sys
from pathlib import Path
from usam import cli, paths
paths.NOTEBOOKS, cli.inputs = Path(sys.argv[1]) / "notebooks", lambda profile: []
sys.exit(cli.main(["--profile", "smoke"]))
"""


def test_ctrl_c_in_a_cell_is_one_line_and_keeps_what_is_finished(house):
    write(house, "00_a")
    busy = "import pathlib\npathlib.Path(r'{}').touch()\nwhile True:\n    sum(range(1000))"
    write(house, "01_b", busy.format(house / "busy"))
    environment = os.environ | {"USAM_RESULTS": str(house), "USAM_DATA": str(house / "data")}
    ours = subprocess.Popen(
        [sys.executable, "-c", RUN, house], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (house / "busy").exists() and ours.poll() is None:
        time.sleep(0.05)
    os.killpg(ours.pid, signal.SIGINT)  # as a terminal does it
    _, printed = ours.communicate(timeout=60)
    assert ours.returncode == 130, printed
    lines = [line for line in printed.replace("\r", "\n").splitlines() if line.strip() and "cell/s]" not in line]
    assert [line for line in lines if "s/cell]" not in line and "?cell" not in line] == [
        "usam: stopped; finished notebooks stay, and the same command continues from there"
    ]
    assert (house / "smoke" / "notebooks" / "00_a.ipynb").exists()
    assert not (house / "smoke" / "notebooks" / "01_b.ipynb").exists()


def test_command_line_errors(capsys):
    assert cli.main(["--profile", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("usam: no profile 'nowhere': choose one of ")
    for wrong in (["--only", "1", "--from", "2"], ["--sed", "x"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2


def test_summary_prints_tables(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "1.md").write_text("| mIoU |\n")
    printed = cli.summary(tmp_path, 61.4)
    assert "| mIoU |" in printed and "61 s in all" in printed and printed.endswith(f"results: {tmp_path}")


# A Python that writes down what it is asked to do. `-m venv FOLDER` copies it there; pip's exit code is in a file.
FAKE = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$*" in
    *sys.prefix*) dirname "$(dirname "$0")" ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*install*) exit "$(cat "$NOTES.pip")" ;;
esac
"""


class Shell:
    """`run_all.sh` in a folder of its own, with the note-taking Python."""

    def __init__(self, folder: Path):
        self.notes, self.script, self.python = folder / "notes", folder / "my usam" / "run_all.sh", folder / "python"
        self.script.parent.mkdir()
        for name in ("run_all.sh", "requirements.lock", "pyproject.toml"):
            shutil.copy(paths.ROOT / name, self.script.parent)
        self.python.write_text(FAKE)
        self.python.chmod(0o755)

    def __call__(self, *words: str, pip: int = 0, script: Path | None = None, **environment: str):
        self.notes.write_text("")
        self.notes.with_name("notes.pip").write_text(str(pip))
        variables = os.environ | {"NOTES": str(self.notes), "PYTHON": str(self.python)} | environment
        variables.pop("USAM_ACTIVE_ENV", None)
        command = ["bash", str(script or self.script), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=self.notes.parent)
        return done.returncode, done.stdout, done.stderr, self.notes.read_text().splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_script_help_and_wrong_options_touch_nothing(shell):
    code, out, _, calls = shell("--help")
    assert (code, calls) == (0, []) and out.startswith("usage: ./run_all.sh [--profile NAME]")
    for wrong in (["--prfile", "x"], ["--only"]):
        code, _, err, calls = shell(*wrong)
        assert (code, calls, err.count("\n")) == (2, [], 1)


def test_script_installs_once_and_half_an_installation_again(shell):
    code, _, err, calls = shell(pip=1)
    assert code == 1 and "installation failed" in err and not any("usam.cli" in line for line in calls)
    code, _, _, calls = shell("--only", "03", "--seed=4")
    assert code == 0 and sum("install" in line for line in calls) == 2
    assert calls[-1] == "-P -m usam.cli --only 03 --seed=4"
    code, out, _, calls = shell("test", "-k", "some thing")
    assert code == 0 and "installed already" in out and not any("pip" in line and "install" in line for line in calls)
    assert calls[-1] == "-m pytest -k some thing"
    with (shell.script.parent / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert sum("install" in line for line in shell()[3]) == 2


def test_script_through_a_link_and_after_a_move(shell, tmp_path):
    (tmp_path / "link").symlink_to(shell.script)
    assert shell(script=tmp_path / "link")[0] == 0
    assert (shell.script.parent / ".venv" / "usam-installed").is_file()
    moved = shell.script.parent.rename(tmp_path / "elsewhere") / "run_all.sh"
    assert any(line.endswith(f"-e {moved.parent} --no-deps") for line in shell(script=moved)[3])


def test_script_names_a_python_that_does_not_fit(shell):
    code, _, err, _ = shell(PYTHON="false")
    assert (code, err) == (1, "run_all.sh: PYTHON=false is no Python 3.11 to 3.13: set another, or unset it\n")


def test_script_in_the_active_environment(shell, tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    shutil.copy(shell.python, tmp_path / "env" / "bin" / "python")
    code, _, _, calls = shell("--active", PATH=f"{tmp_path / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert code == 0 and calls[-1] == "-P -m usam.cli"
    assert not (shell.script.parent / ".venv").exists() and (tmp_path / "env" / "usam-installed").is_file()
