"""Render ``docs/scripts.md``: the command line of every script, taken from its own argument parser."""

import argparse
import ast
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINE = ("threads",)
"""Arguments whose default depends on the machine."""


class Parsed(BaseException):
    """Carries a parser out of a script that is about to use it; no script catches it."""


def scripts_page() -> str:
    """Render the page: tools that people call, then the scripts of rules."""
    lines = [
        "# Scripts\n",
        "One executable per rule, and tools to be called by hand. All exit with 0 when done, 1 after one sentence",
        "about what was wrong, and 143 when SIGTERM arrived and the state was saved: give the same command again.",
        "Outside `make` they need an installed package or `PYTHONPATH=src`.\n",
        "## Tools\n",
    ]
    rules = []
    for path in executables():
        parser = parser_of(path) if has_parser(path) else None
        if parser is not None and "--spec" in options(parser):
            rules.append(rule_row(path, parser))
        else:
            lines += tool(path, parser)
    lines += [
        "## Scripts of rules\n",
        "Snakemake calls them, all with the same arguments: `--spec` (canonical JSON of every parameter that changes",
        "the result), `--out` (the edge to write; its siblings go beside it), `--device`, `--threads`, and the edges",
        "they read.\n",
        "| script | what it does | edges |",
        "|---|---|---|",
        *rules,
    ]
    return "\n".join(lines) + "\n"


def executables() -> list[Path]:
    """List the scripts that can be called."""
    found = sorted((ROOT / "scripts").glob("*.py"))
    return [path for path in found if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def has_parser(path: Path) -> bool:
    """Say whether a script describes its command line with ``argparse``, itself or by one of the shared runners."""
    text = path.read_text(encoding="utf-8")
    return any(word in text for word in ("ArgumentParser", "run(main"))


@cache
def parser_of(path: Path) -> argparse.ArgumentParser:
    """Start a script and stop it where it parses its arguments."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Parsed(parser)

    parse, search, words = argparse.ArgumentParser.parse_args, list(sys.path), list(sys.argv)
    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign,assignment]
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src"), str(ROOT / "workflow")]
    sys.argv = [str(path)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Parsed as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]
        sys.path[:], sys.argv = search, words
    raise LookupError(f"{path}: ended without parsing its arguments")


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return every argument of a parser by the name it is given with, help left out."""
    return {
        action.option_strings[-1] if action.option_strings else str(action.dest): action
        for action in parser._actions
        if action.dest != "help"
    }


def tool(path: Path, parser: argparse.ArgumentParser | None) -> Iterator[str]:
    """Render a script with a command line of its own."""
    yield f"### {path.name}\n"
    yield described(path) + "\n"
    if parser is not None:
        yield "| argument | default | meaning |\n|---|---|---|"
        for name, action in options(parser).items():
            yield f"| `{spelled(name, action)}` | {default_of(action)} | {meaning(action)} |"
        yield ""


def spelled(name: str, action: argparse.Action) -> str:
    """Write an argument with the values it takes."""
    value = action.metavar or (action.dest.upper() if action.option_strings else "")
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        value = ""
    if not action.option_strings:
        name, value = str(value or action.dest.upper()), ""
    return f"{name} {value}".strip() + (" ..." if action.nargs in ("+", "*") else "")


def default_of(action: argparse.Action) -> str:
    """Write the default of an argument, nothing where there is none or where it depends on the machine."""
    if action.required or (not action.option_strings and action.nargs != "?"):
        return "required"
    if action.dest in MACHINE:
        return "of the machine"
    if action.nargs == 0 or action.default in (None, "", [], argparse.SUPPRESS):
        return ""
    words = action.default if isinstance(action.default, list | tuple) else [action.default]
    return f"`{' '.join(map(str, words))}`"


def meaning(action: argparse.Action) -> str:
    """Return the help of an argument, fit for a cell."""
    return " ".join((action.help or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("%%", "%")


def rule_row(path: Path, parser: argparse.ArgumentParser) -> str:
    """Render the row of a rule's script."""
    shared = ("--spec", "--out", "--device", "--threads")
    edges = ", ".join(f"`{name}`" for name in options(parser) if name not in shared)
    return f"| `{path.name}` | {' '.join(described(path).split()).replace('|', chr(92) + '|')} | {edges} |"


def described(path: Path) -> str:
    """Return the docstring of a script."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").replace("``", "`")
