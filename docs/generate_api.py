"""Render ``docs/api.md``: every public name of the library with its signature and docstring, read from the source.

Nothing is imported but the list of names: classes and functions are found in the syntax trees of their modules, and
inherited methods in those of their base classes, as far as these are ours.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import eigenloom

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "bases": "Bases",
    "batches": "Rows",
    "sources": "Rows",
    "moments": "Moments and standardization",
    "linalg": "Mathematics on tensors",
    "nn": "Attention",
    "optim": "Optimizer",
    "experts": "Expert banks",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
SECTIONS = re.compile(r"^(Args|Attributes|Example|Examples|Raises|Returns|Yields|Note|References):$")
LISTED = ("Args", "Attributes", "Raises")


def api_page() -> str:
    """Render the page."""
    lines = [
        "# The library\n",
        "Everything here is imported from `eigenloom` itself, on first use: `import eigenloom` alone loads no torch.",
        "Errors that a user can cause are classes of `eigenloom.errors`; all derive from `EigenloomError`.\n",
    ]
    grouped: dict[str, list[str]] = {}
    for name, module in public_names().items():
        grouped.setdefault(GROUPS[module.split(".")[1]], []).append(name)
    for title, names in grouped.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += entry(name, public_names()[name])
    return "\n".join(lines).rstrip() + "\n"


def public_names() -> dict[str, str]:
    """Return every public name with the module that defines it."""
    return dict(eigenloom._EXPORTS)


def entry(name: str, module: str) -> Iterator[str]:
    """Render one public name."""
    node = definition(name, module)
    yield f"### {name}\n"
    yield f"In `{module}`.\n"
    if isinstance(node, ast.ClassDef):
        yield listing(class_head(node))
        yield text_of(node)
        seen: set[str] = set()
        for owner, method in methods(node, module):
            if method.name not in seen and not method.name.startswith("_"):
                seen.add(method.name)
                inherited = "" if owner == name else f" (of `{owner}`)"
                yield f"#### {name}.{method.name}{inherited}\n"
                yield listing(signature(method))
                yield text_of(method)
    else:
        yield listing(signature(node))
        yield text_of(node)


def documented(name: str, module: str) -> str:
    """Return the docstring that a public name has in its own definition, empty if it has none."""
    return ast.get_docstring(definition(name, module)) or ""


@cache
def tree(module: str) -> ast.Module:
    """Parse a module of ours."""
    stem = ROOT / "src" / Path(*module.split("."))
    path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(name: str, module: str) -> ast.ClassDef | Function:
    """Find a class or function in its module."""
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return node
    raise LookupError(f"eigenloom._EXPORTS: {module} defines no class or function {name}")


def methods(node: ast.ClassDef, module: str) -> Iterator[tuple[str, Function]]:
    """Yield the methods of a class and of its base classes of ours, nearest first, with the class that has them."""
    for child in node.body:
        if isinstance(child, Function):
            yield node.name, child
    for base in node.bases:
        home = origin(ast.unparse(base).split("[")[0], module)
        if home is not None:
            yield from methods(*home)


def origin(name: str, module: str) -> tuple[ast.ClassDef, str] | None:
    """Find a class that a module defines or imports from us; None for a class from elsewhere."""
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eigenloom"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return origin(alias.name, node.module or "")
    return None


def class_head(node: ast.ClassDef) -> str:
    """Write a class with its fields, or with what its constructor takes."""
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    head = f"class {node.name}({bases})" if bases else f"class {node.name}"
    fields = [
        ast.unparse(child)
        for child in node.body
        if (isinstance(child, ast.AnnAssign) and not ast.unparse(child.target).startswith("_"))
        or (isinstance(child, ast.Assign) and "Enum" in bases)
    ]
    made = [signature(child) for child in node.body if isinstance(child, Function) and child.name == "__init__"]
    return "\n    ".join([f"{head}:", *fields, *(line for text in made for line in text.splitlines())])


def signature(node: Function) -> str:
    """Write a function as its source does, one argument a line where it would be long."""
    marks = [f"@{ast.unparse(mark)}\n" for mark in node.decorator_list if ast.unparse(mark) in MARKS]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) > 100:
        arguments = split_arguments(node.args)
        line = f"def {node.name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"
    return "".join(marks) + line


MARKS = ("property", "cached_property", "classmethod", "staticmethod")


def split_arguments(arguments: ast.arguments) -> list[str]:
    """Write every argument with its annotation and default, the bare star included."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    words = [argument(a, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        words.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        words.append("*")
    words += [argument(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return words + ([f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else [])


def argument(node: ast.arg, default: ast.expr | None) -> str:
    """Write one argument."""
    equals = " = " if node.annotation else "="
    return ast.unparse(node) + (f"{equals}{ast.unparse(default)}" if default is not None else "")


def listing(code: str) -> str:
    """Fence a piece of Python."""
    return f"```python\n{code}\n```\n"


def text_of(node: ast.ClassDef | Function) -> str:
    """Turn a docstring in Google's form into Markdown."""
    lines: list[str] = []
    section = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if found := SECTIONS.match(line):
            section = found[1]
            lines += ["", f"*{section}*", ""]
        elif section and line.startswith("    "):
            lines.append(item(line[4:], section))
        else:
            section = "" if line.strip() else section
            lines.append(line)
    return "\n".join(lines).replace("``", "`").strip() + "\n"


def item(line: str, section: str) -> str:
    """Write a line of a section: a new item of a list, the continuation of one, or plain text."""
    if section not in LISTED:
        return line
    found = re.match(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)$", line)
    return f"- `{found[1]}`: {found[2]}" if found else f"  {line.strip()}"
