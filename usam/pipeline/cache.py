"""One cache for all stages: under which key a result is kept."""

import ast
import functools
import hashlib
import io
import json
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usam import paths
from usam.files import file_sha


def key(parameters: Any, code: Sequence[str | Path] = (), files: Sequence[Path] = ()) -> str:
    """16 hex digits that change whenever anything a result depends on changes.

    Args:
        parameters: JSON-like (pydantic models allowed): all settings, and the keys of the inputs.
        code: folders of the package ("method"), or other folders and files, whose code decides the result. What a
            program does counts: comments and docstrings do not.
        files: files whose content decides the result (weights).
    """
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=plain).encode())
    for place in (paths.PACKAGE / one for one in code):
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            state = file.stat()
            digest.update(f"{file.name}\0{_code_sha(file, state.st_mtime_ns, state.st_size)}".encode())
    for file in files:
        state = file.stat()
        digest.update(file_sha(file, state.st_mtime_ns, state.st_size).encode())
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A value as JSON has it: pydantic models as dictionaries, other objects as text."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


@functools.cache
def _code_sha(file: Path, _modified: int, _size: int) -> str:
    return hashlib.sha256(without_prose(file.read_text(encoding="utf-8")).encode()).hexdigest()


def without_prose(source: str) -> str:
    """Python source without comments, docstrings (also those below settings), blank lines and trailing blanks."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())
