"""The digest of the code that makes a result, so that an edit of the code reruns exactly what it touches.

Parsing some two hundred modules takes seconds, and every job of a cluster would do it again. So what a file holds is
remembered in ``.snakemake/``, by the digest of its bytes; without that file it is computed anew.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from eigenloom.errors import EigenloomError
from eigenloom.provenance import canonical_json, file_digest, text_digest
from eigenloom.store.atomic import write_text

REMEMBERED = Path(".snakemake") / "code-digests.json"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(
    script: Path, roots: Sequence[Path], modules: Iterable[str] = (), remembered: Path | None = None
) -> str:
    """Digest a script together with every project module it reaches by import.

    Comments, docstrings, layout and the Python version do not change it; any other edit does.

    Args:
        script: the executable whose result depends on the code.
        roots: directories in which project modules are looked for (``src``, ``scripts``); what is not found
            there is a dependency and belongs to the pins.
        modules: dotted names reached in ways an import statement does not show, such as a registry's kind.
        remembered: a file in which digests and imports of files are kept from one process to the next.

    Returns:
        sha256 hex digest.

    The package's own ``eigenloom/__init__.py`` is left out: it holds the version and lazy names, no behaviour.
    """
    memory = _memory(remembered)
    digest, imports = memory.facts(script, "")
    found, queue = {str(script.name): digest}, [*imports, *modules]
    while queue:
        name = queue.pop()
        path = _locate(name, tuple(roots))
        if path is None or name in found:
            continue
        found[name], imports = memory.facts(path, name if path.name == "__init__.py" else name.rpartition(".")[0])
        queue += [*imports, name.rpartition(".")[0]]
    memory.keep()
    return text_digest(canonical_json(found))


class _Memory:
    """What files hold, by the digest of their bytes: digest of the code, dotted names imported."""

    def __init__(self, path: Path | None):
        """Read what an earlier process left, if it was made by this very module."""
        self.path, self.known, self.grown = path, {}, False
        self.maker = file_digest(__file__)
        self.seen: dict[tuple[Path, str], tuple[str, list[str]]] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            document = json.loads(path.read_text(encoding="utf-8")) if path else {}
            if document["made_by"] == self.maker:
                self.known = {key: (str(digest), list(names)) for key, (digest, names) in document["files"].items()}

    def facts(self, path: Path, package: str) -> tuple[str, list[str]]:
        """Return the digest of a file's code and the names it imports from inside a package."""
        if (path, package) not in self.seen:
            content = path.read_bytes()
            key = f"{hashlib.sha256(content).hexdigest()} {package}"
            if key not in self.known:
                tree = ast.parse(content, str(path))
                self.known[key], self.grown = (_tree_digest(tree), _imports(tree, package)), True
            self.seen[path, package] = self.known[key]
        return self.seen[path, package]

    def keep(self) -> None:
        """Leave it to later processes; where nothing can be written, nothing is."""
        if self.path and self.grown and self.path.parent.is_dir():
            with suppress(EigenloomError):
                write_text(self.path, json.dumps({"made_by": self.maker, "files": self.known}))
                self.grown = False


_memory = cache(_Memory)


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


def _imports(tree: ast.Module, package: str) -> list[str]:
    """List the dotted names that a file imports, those inside functions included."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _tree_digest(tree: ast.Module) -> str:
    """Digest a syntax tree without docstrings."""
    hasher = hashlib.sha256()
    _feed(tree, hasher.update)
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
