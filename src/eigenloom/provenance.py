"""Digests: of text, of files, of values, and of the code that made a result.

Standard library only: the Snakefile calls this at parse time, before any heavy import.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def text_digest(text: str) -> str:
    """Return the sha256 hex digest of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(script: Path, roots: Sequence[Path], modules: Iterable[str] = ()) -> str:
    """Digest a script together with every project module it reaches by import.

    Comments, docstrings, layout and the Python version do not change it; any other edit does.

    Args:
        script: the executable whose result depends on the code.
        roots: directories in which project modules are looked for (``src``, ``scripts``); what is not found
            there is a dependency and belongs to the pins.
        modules: dotted names reached in ways an import statement does not show, such as a registry's kind.

    Returns:
        sha256 hex digest.

    The package's own ``eigenloom/__init__.py`` is left out: it holds the version and lazy names, no behaviour.
    """
    found = {str(script.name): _module_digest(script)}
    queue = [*_imports(script, ""), *modules]
    while queue:
        name = queue.pop()
        path = _locate(name, tuple(roots))
        if path is None or name in found:
            continue
        found[name] = _module_digest(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        queue += _imports(path, package)
        queue.append(name.rpartition(".")[0])
    return text_digest(canonical_json(found))


@cache
def _locate(name: str, roots: tuple[Path, ...]) -> Path | None:
    """Find the file of a dotted name below the roots; the package root itself does not count."""
    if not name or name == "eigenloom":
        return None
    for root in roots:
        base = root.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _tree(path: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imports(path: Path, package: str) -> list[str]:
    """List the dotted names that a file imports, those inside functions included."""
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


@cache
def _module_digest(path: Path) -> str:
    """Digest one file's syntax tree without docstrings."""
    hasher = hashlib.sha256()
    _feed(_tree(path), hasher.update)
    return hasher.hexdigest()


def _feed(node: Any, update: Any) -> None:
    """Serialise a syntax tree the same way under every Python from 3.10 on.

    ``ast.dump`` and ``ast.unparse`` differ between versions; fields that are empty, and the ``kind`` of string
    constants, are where they do.
    """
    if isinstance(node, ast.AST):
        update(f"({type(node).__name__}".encode())
        documented = isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None
        for field, value in ast.iter_fields(node):
            if documented and field == "body":
                value = value[1:]
            if value is None or value == [] or field == "kind":
                continue
            update(f" {field}=".encode())
            _feed(value, update)
        update(b")")
    elif isinstance(node, list):
        update(b"[")
        for item in node:
            _feed(item, update)
        update(b"]")
    else:
        update(f"{type(node).__name__}:{node!r};".encode())
