"""What MkDocs checks after it has built the site: pages load nothing from the network, and show every public name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eigenloom import _EXPORTS

LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)")
LINKED = re.compile(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)")
STYLED = re.compile(r"(?:@import\s+[\"']?|url\([\"']?)((?:https?:)?//[^\"')\s]+)")


def on_post_build(config: Mapping[str, Any]) -> None:
    """Fail the build with a list of what is wrong."""
    site = Path(config["site_dir"])
    problems = [*network(site), *unshown(site)]
    if problems:
        raise SystemExit("\n".join(problems))


def network(site: Path) -> Iterator[str]:
    """Name everything that a browser would fetch from elsewhere on opening a page."""
    for path in sorted(site.rglob("*")):
        patterns = {".html": (LOADED, LINKED, STYLED), ".css": (STYLED,)}.get(path.suffix, ())
        for pattern in patterns:
            for address in pattern.findall(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(site)}: loads {address} from the network"


def unshown(site: Path) -> Iterator[str]:
    """Name the public names that the page of the library has no heading for."""
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in _EXPORTS:
        if not re.search(rf"<h3 id=\"?{re.escape(name.lower())}\"?[\s>]", page):
            yield f"api.html: {name} is not shown"
