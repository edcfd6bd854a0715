"""Run the notebooks in order, and reuse what is still valid: `python -m usam.cli --profile mini`."""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

from usam import machine, paths, profiles
from usam.data import huggingface, published
from usam.errors import UserError
from usam.files import write_atomically
from usam.notebooks import choose, plan, run
from usam.pipeline import cache, scoring, stages
from usam.profiles import Profile
from usam.report import html_report


def inputs(profile: Profile) -> list[Path]:
    """The files that decide the results of a run: the profile, its weights and models, our code, the locked versions.

    Published files are not among them: `usam.data.published` lists their checksums. Nor are data sets and web images:
    after a change in those, use `--from NN`.
    """
    package = [p for p in sorted(paths.PACKAGE.rglob("*")) if p.is_file() and p.suffix not in {".pyc", ".md"}]
    weights = [published.checkpoint(profile.sam)] if profile.sam.checkpoint else []
    others = [file for model in sorted(published.models(profile)) for file in huggingface.model_files(model)]
    return [*profiles.files(profile.name), *weights, paths.ROOT / "requirements.lock", *package, *others]


def note_state(profile: Profile) -> None:
    """Write state.json beside the results: which settings and code, with which arithmetic, they belong to."""
    known = {"state": scoring.state(profile), "code": scoring.code_state(profile), "precision": profile.sam.precision}
    write_atomically(paths.results(profile.name) / "state.json", json.dumps(known | {"commit": machine.commit()}))


def summary(results: Path, seconds: float) -> str:
    """The tables of a run, without the comments at their ends; its cost; and where the results are."""
    texts = {p: p.read_text(encoding="utf-8").partition("<!--")[0].strip() for p in sorted(results.glob("tables/*.md"))}
    peak = machine.peak_memory(resource.RUSAGE_CHILDREN)
    cost = f"{seconds:.0f} s in all" + (f", at most {peak:.1f} GiB in one process" if peak else "")
    return "\n".join(["", *(f"{p}\n\n{text}\n" for p, text in texts.items()), f"{cost}; results: {results}"])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m usam.cli", description=__doc__)
    parser.add_argument("--profile", default="mini", help="a file of profiles/, without .yaml (default: mini)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="NN", help="execute this notebook alone, even if it is valid")
    part.add_argument("--from", metavar="NN", dest="start", help="begin with this notebook")
    parser.add_argument("--seed", type=int, metavar="N", help="the first seed, instead of the profile's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 for an error that the user can fix, 130 for Ctrl-C."""
    options = _arguments(argv)
    for name in ("USAM_DATA", "USAM_RESULTS"):
        if folder := os.environ.get(name):  # made absolute: the kernels work in another directory
            os.environ[name] = str(Path(folder).expanduser().resolve())
    start = time.perf_counter()
    try:
        profile = profiles.load(options.profile, seed=options.seed)
        parameters = {"profile": options.profile} | ({} if options.seed is None else {"seed": options.seed})
        results, data = paths.results(options.profile), paths.data() / options.profile
        key = cache.key(profile.decisive(), stages.own_code(profile), inputs(profile))
        absent = [name for name, value in profile if value is None]
        jobs = choose(plan(paths.NOTEBOOKS, results, data, parameters, key, absent), options.only, options.start)
        run(jobs, force=options.only is not None)
        print(summary(results, time.perf_counter() - start))
        if (results / "runs.csv").exists():
            note_state(profile)
            print(f"all on one page: {html_report.build(profile)}")
    except UserError as error:
        print(f"usam: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nusam: stopped; finished notebooks stay, and the same command continues from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
