"""Notebooks of a run: which there are, which are still valid, and how papermill executes one."""

import os
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from traitlets.config import Config

from usam import paths
from usam.errors import UserError
from usam.pipeline import cache


@dataclass(frozen=True)
class Job:
    """One notebook of a run.

    Attributes:
        notebook: the file as it is in the repository.
        output: where the executed notebook goes, in `notebooks/` of the run's folder.
        data: folder of the run's data sets; if it is deleted, the notebook is executed again.
        parameters: what is put behind the notebook's `parameters` cell.
        key: of all that decides the result, noted in the executed notebook.
    """

    notebook: Path
    output: Path
    data: Path
    parameters: dict[str, Any]
    key: str

    @property
    def number(self) -> str:
        return self.notebook.name[:2]

    @property
    def partial(self) -> Path:
        """Where the notebook is written while it runs: a half-executed one never looks finished."""
        return self.output.with_suffix(".partial.ipynb")

    def written(self) -> dict[str, int]:
        """Tables, figures and other results beside the notebooks, with the time each was written."""
        results = self.output.parent.parent
        found = [p for p in results.rglob("[!.]*") if p.is_file() and p.parent != self.output.parent]
        return {p.relative_to(results).as_posix(): p.stat().st_mtime_ns for p in found}


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
    notebooks: Path, results: Path, data: Path, parameters: dict[str, Any], key: str, absent: Collection[str] = ()
) -> list[Job]:
    """All notebooks `NN_name.ipynb` of a folder in order, without those marked `usam.interactive` in their metadata.

    Those that need a key (`usam.needs`) which the profile does not have are left out, too.

    Args:
        notebooks: folder of the notebooks.
        results: folder of the run; executed notebooks go below it.
        data: as in `Job`.
        parameters: given to every notebook.
        key: of all else that decides the results: settings, code, weights.
        absent: keys that the profile does not have.

    Raises:
        UserError: there is no notebook, one cannot be read, or one has no such parameter.
    """
    jobs = []
    for notebook in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        content = read(notebook)
        marks = content.metadata.get("usam", {})
        if marks.get("interactive"):
            continue
        if marks.get("needs") in absent:
            print(f"{notebook.stem}: left out, as the profile has no key '{marks['needs']}'", flush=True)
            continue
        _check_parameters(notebook, parameters)
        cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in content.cells]
        key = cache.key([key, parameters, notebook.name, cells])  # the keys of the notebooks before are in it
        jobs.append(Job(notebook, results / "notebooks" / notebook.name, data, parameters, key))
    if not jobs:
        raise UserError(f"no notebooks NN_name.ipynb in {notebooks}: restore the folder from the repository")
    return jobs


def _check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """An unknown parameter is an error: papermill only warns, and runs the notebook with its default."""
    try:
        known = papermill.inspect_notebook(notebook)
    except ValueError as error:
        raise UserError(f"{notebook.name} names no kernel: open it in JupyterLab, choose Python 3, save") from error
    if unknown := sorted(set(parameters) - set(known)):
        raise UserError(
            f"{notebook.name} does not know the parameter {', '.join(unknown)}: write it into the cell that is tagged "
            f"'parameters', which has {', '.join(known) or 'none'}"
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
    if wanted.zfill(2) not in numbers:
        raise UserError(f"no notebook {wanted}: there are {', '.join(numbers)}")
    first = numbers.index(wanted.zfill(2))
    return jobs[first : first + 1] if only else jobs[first:]


def is_valid(job: Job) -> bool:
    """Whether the executed notebook exists, made from the same inputs, and neither results nor data were deleted."""
    try:
        known = read(job.output).metadata.get("usam", {})
    except UserError:
        return False
    same = known.get("key") == job.key and (job.data.exists() or not known.get("data"))
    return same and set(known.get("files", [])) <= set(job.written())


def execute(job: Job) -> None:
    """Run one notebook with papermill, and note in it the key, the results that it wrote, and whether data exist.

    Raises:
        UserError: a cell failed, the kernel died or the disk is full; `job.partial` then holds what was executed.
    """
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        before = job.written()
        done = papermill.execute_notebook(
            job.notebook,
            job.partial,
            job.parameters,
            kernel_name="python3",
            cwd=paths.ROOT,
            progress_bar={"desc": job.notebook.stem},
            coalesce_streams=True,  # of a progress bar, the last state alone
            start_timeout=600,  # seconds; a busy machine can need more than papermill's 60
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else each kernel warns that it is not
        )
        done.metadata.papermill.update(input_path=job.notebook.name, output_path=job.output.name)  # no paths
        files = sorted(name for name, when in job.written().items() if before.get(name) != when)
        left = {"key": job.key, "data": job.data.exists(), "files": files}
        done.metadata["usam"] = {**done.metadata.get("usam", {}), **left}
        _remove_widgets(done)
        nbformat.write(done, job.partial)
        job.partial.replace(job.output)
    except papermill.PapermillExecutionError as error:
        message = error.evalue.strip()
        reason = message if error.ename == "UserError" else f"{error.ename}: {message}".splitlines()[0]
        raise UserError(_failure(job, f"cell In [{error.exec_count}]: {reason}")) from error
    except RuntimeError as error:  # of nbclient: the kernel did not start, or died
        raise UserError(_failure(job, f"a cell: {error}; often the machine ran out of memory")) from error
    except OSError as error:
        raise UserError(f"cannot write {error.filename or job.partial}: {error.strerror}") from error


def _remove_widgets(notebook: nbformat.NotebookNode) -> None:
    """Remove widgets, which need a kernel; their HTML stays."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def _failure(job: Job, what: str) -> str:
    return (
        f"{job.notebook.name}, {what}\n"
        f"  what was executed: {job.partial}\n"
        f"  to continue after fixing it: the same command with --from {job.number}"
    )


def run(jobs: list[Job], force: bool = False) -> None:
    """Execute the jobs in order, one line each; valid ones are reused unless `force`.

    "python3" means this interpreter meanwhile, whatever kernels the user has registered. The kernels' log level hides
    the traceback that one prints when Ctrl-C stops it in a cell.

    Raises:
        UserError: a notebook failed; those before it stay.
    """
    with tempfile.TemporaryDirectory(prefix="usam-kernel-") as folder:
        write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=CRITICAL"])
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        for job in jobs:
            if not force and is_valid(job):
                print(f"{job.notebook.stem}: reused (its inputs have not changed)", flush=True)
                continue
            start = time.perf_counter()
            execute(job)
            print(f"{job.notebook.stem}: done in {time.perf_counter() - start:.0f} s", flush=True)
