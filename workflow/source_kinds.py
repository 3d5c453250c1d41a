"""The kinds of sources. Another joins by a class, a line here, its rules, and its alternative in the schema."""

from collections.abc import Mapping
from typing import Any

from image_source import ImageSource
from recorded_source import RecordedSource
from source import Source
from spectra_source import SpectraSource
from text_source import TextSource

KINDS: dict[str, type[Source]] = {
    "images": ImageSource, "recorded": RecordedSource, "spectra": SpectraSource, "texts": TextSource,
}  # fmt: skip


def build(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Make every source of a configuration, those that others take something from before these."""
    sources: dict[str, Source] = {}
    for name, entry in sorted(entries.items(), key=lambda item: KINDS[item[1]["kind"]].needs(item[1]) is not None):
        kind = KINDS[entry["kind"]]
        sources[name] = kind(name, entry, sources.get(kind.needs(entry) or ""))
    return sources
