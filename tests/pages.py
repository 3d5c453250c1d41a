"""The fenced blocks of Markdown pages, for tests that run them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file that its title names (empty without one), its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    found = []
    for language, info, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]*)"', info)
        found.append(Block(language, title[1] if title else "", text))
    return found


def pages() -> list[str]:
    """List every page that is written by hand, the README first."""
    generated = {"api.md", "config.md", "performance.md", "scripts.md"}
    found = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in generated)
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


def command_lines(page: str) -> list[str]:
    """Return the commands of blocks of a shell or of no language: continued lines joined, comments cut off."""
    lines = []
    for block in blocks(page):
        if block.language in ("", "bash", "sh", "console"):
            text = block.text.replace("\\\n", " ")
            found = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines())
            lines += [part for line in found if line for part in re.split(r"\s*&&\s*", line)]
    return lines
