"""Notebooks of a run: which there are, which are still valid, and how papermill executes one."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from traitlets.config import Config

from usam.errors import UserError


@dataclass(frozen=True)
class Job:
    """One notebook of a run.

    Attributes:
        notebook: the file as it is in the repository.
        output: where the executed notebook goes.
        parameters: what is put behind the notebook's `parameters` cell.
        key: SHA-256 of all that decides the result, noted in the executed notebook.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    key: str

    @property
    def number(self) -> str:
        return self.notebook.name[:2]

    @property
    def results(self) -> Path:
        """The folder of the run."""
        return self.output.parent.parent

    @property
    def partial(self) -> Path:
        """Where the notebook is written while it runs: a half-executed one never looks finished."""
        return self.output.with_suffix(".partial.ipynb")


def read(notebook: Path) -> nbformat.NotebookNode:
    """The notebook's content.

    Raises:
        UserError: not a notebook.
    """
    try:
        return nbformat.read(notebook, as_version=4)
    except (ValueError, OSError, AttributeError) as error:  # what nbformat raises for other people's JSON
        raise UserError(f"{notebook} is no readable notebook ({error}): restore it from the repository") from error


def plan(
    notebooks: Path, results: Path, parameters: dict[str, Any], inputs: Sequence[Path], settings: Any = None
) -> list[Job]:
    """All notebooks `NN_name.ipynb` of a folder in order, without those marked `usam.interactive` in their metadata.

    Args:
        notebooks: folder of the notebooks.
        results: folder of the run; executed notebooks go below it.
        parameters: given to every notebook.
        inputs: other files that decide the results: profile, code, weights.
        settings: as they are on this machine, JSON-like; they decide results, too.

    Raises:
        UserError: there is no notebook, one cannot be read, or one has no such parameter.
    """
    digest = hashlib.sha256(json.dumps([parameters, settings], sort_keys=True).encode())
    for file in inputs:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    jobs = []
    for notebook in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        content = read(notebook)
        if content.metadata.get("usam", {}).get("interactive"):
            continue
        check_parameters(notebook, content, parameters)
        cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in content.cells]
        digest.update(json.dumps([notebook.name, cells]).encode())  # the keys of the notebooks before are in it
        jobs.append(Job(notebook, results / "notebooks" / notebook.name, parameters, digest.hexdigest()))
    if not jobs:
        raise UserError(f"no notebooks NN_name.ipynb in {notebooks}: restore the folder from the repository")
    return jobs


def check_parameters(notebook: Path, content: nbformat.NotebookNode, parameters: dict[str, Any]) -> None:
    """An unknown parameter is an error: papermill only warns, and runs the notebook with its default.

    Raises:
        UserError: no `parameters` cell, no kernel named, or a parameter that is not in the cell.
    """
    if not any("parameters" in cell.metadata.get("tags", []) for cell in content.cells):
        raise UserError(f"{notebook.name} has no cell tagged 'parameters': tag the one with {', '.join(parameters)}")
    try:
        known = papermill.inspect_notebook(notebook)
    except ValueError as error:
        raise UserError(f"{notebook.name} names no kernel: open it in JupyterLab, choose Python 3, save") from error
    if unknown := sorted(set(parameters) - set(known)):
        raise UserError(
            f"{notebook.name} does not know the parameter {', '.join(unknown)}: "
            f"its 'parameters' cell has {', '.join(known) or 'none'}"
        )


def choose(jobs: list[Job], only: str | None = None, start: str | None = None) -> list[Job]:
    """The job numbered `only`, or all from number `start` on, or all.

    Raises:
        UserError: no such number.
    """
    wanted = only or start
    numbers = [job.number for job in jobs]
    if wanted is None:
        return jobs
    if wanted not in numbers:
        raise UserError(f"no notebook {wanted}: there are {', '.join(numbers)}")
    return [job for job in jobs if (job.number == wanted if only else job.number >= wanted)]


def is_valid(job: Job, data: Path) -> bool:
    """Whether the executed notebook exists, made from the same inputs, and none of its results was deleted."""
    try:
        known = nbformat.read(job.output, as_version=4).metadata.get("usam", {})
    except (OSError, ValueError, AttributeError):
        return False
    whole = all((job.results / file).is_file() for file in known.get("files", []))
    return known.get("key") == job.key and whole and (data.exists() or not known.get("data"))


def _written(job: Job) -> dict[str, int]:
    """Tables, figures and other results beside the notebooks, with the time each was written."""
    found = [p for p in job.results.rglob("[!.]*") if p.is_file() and p.parent != job.output.parent]
    return {p.relative_to(job.results).as_posix(): p.stat().st_mtime_ns for p in found}


def execute(job: Job, root: Path, data: Path) -> None:
    """Run one notebook with papermill.

    Args:
        job: what to run.
        root: working directory of the kernel.
        data: folder whose existence afterwards is noted beside the key, as are the results that the notebook wrote.

    Raises:
        UserError: a cell failed, the kernel died or the disk is full; `job.partial` then holds what was executed.
    """
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        before = _written(job)
        done = papermill.execute_notebook(
            job.notebook,
            job.partial,
            job.parameters,
            kernel_name="python3",
            cwd=root,
            progress_bar={"desc": job.notebook.stem},
            coalesce_streams=True,  # of a progress bar, the last state alone
            start_timeout=600,  # seconds; a busy machine can need more than papermill's 60
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else each kernel warns that it is not
        )
        done.metadata.papermill.update(input_path=job.notebook.name, output_path=job.output.name)  # no paths
        files = sorted(name for name, when in _written(job).items() if before.get(name) != when)
        left = {"key": job.key, "data": data.exists(), "files": files}
        done.metadata["usam"] = {**done.metadata.get("usam", {}), **left}
        _without_widgets(done)
        nbformat.write(done, job.partial)
        job.partial.replace(job.output)
    except papermill.PapermillExecutionError as error:
        raise UserError(_failure(job, f"cell In [{error.exec_count}]", _reason(error))) from error
    except RuntimeError as error:  # of nbclient: the kernel did not start, or died
        raise UserError(_failure(job, "a cell", f"{error}; often the machine ran out of memory")) from error
    except OSError as error:
        raise UserError(f"cannot write {error.filename or job.partial}: {error.strerror}") from error


def _without_widgets(notebook: nbformat.NotebookNode) -> None:
    """Remove widgets, which need a kernel; their HTML stays."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def _reason(error: papermill.PapermillExecutionError) -> str:
    message = error.evalue.strip()
    return message if error.ename == "UserError" else f"{error.ename}: {message}".splitlines()[0]


def _failure(job: Job, place: str, reason: str) -> str:
    return (
        f"{job.notebook.name}, {place}: {reason}\n"
        f"  what was executed: {job.partial}\n"
        f"  to continue after fixing it: the same command with --from {job.number}"
    )


def _use_own_kernel(folder: str) -> None:
    """Let "python3" mean this interpreter from now on, whatever kernels the user has registered.

    Its log level hides the traceback that a kernel prints when Ctrl-C stops it in a cell.
    """
    write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=CRITICAL"])
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))


def run(jobs: list[Job], root: Path, data: Path, force: bool = False) -> None:
    """Execute the jobs in order, in kernels of this interpreter, one line each; valid ones are reused unless `force`.

    Raises:
        UserError: a notebook failed; those before it stay.
    """
    with tempfile.TemporaryDirectory(prefix="usam-kernel-") as folder:
        _use_own_kernel(folder)
        for job in jobs:
            if not force and is_valid(job, data):
                print(f"{job.notebook.stem}: reused (its inputs have not changed)", flush=True)
                continue
            start = time.perf_counter()
            execute(job, root, data)
            print(f"{job.notebook.stem}: done in {time.perf_counter() - start:.0f} s", flush=True)
