"""A pretrained checkpoint of the user's, as a plan sees it: there, known from an earlier run, or of stated size."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from eigenloom.errors import ConfigError, EigenloomError
from eigenloom.sources.model_files import is_hub_id, locate

Facts = TypeVar("Facts")
IDENTITY = ("path", "revision", "cls")


class Checkpoint(Generic[Facts]):
    """One checkpoint, and the edge that a run makes of it."""

    def __init__(self, edge: str, config: Mapping[str, Any], read: Callable[[Path], Facts]):
        """Take the edge's path, the configuration of the model, and what reads the facts of a folder."""
        self.edge, self.config, self._read = edge, config, read

    @cached_property
    def found(self) -> tuple[Facts | None, EigenloomError | None]:
        """What the checkpoint says, or why it says nothing."""
        try:
            return self._read(locate(self.config["path"], self.config["revision"])[0]), None
        except EigenloomError as error:
            return None, error

    @cached_property
    def remembered(self) -> dict[str, Any]:
        """The edge of an earlier run, if it was of the same checkpoint, else nothing."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            edge = json.loads(Path(self.edge).read_text(encoding="utf-8"))
            model = edge["spec"]["model"]
            if all(model.get(key) == self.config.get(key) for key in IDENTITY):
                return edge
        return {}

    def files(self) -> list[str]:
        """Return the folder; nothing where the cache is looked into."""
        return [] if is_hub_id(self.config["path"]) else [self.config["path"]]

    def absent(self, at: str) -> Iterator[str]:
        """Yield a remark where the checkpoint is not there."""
        if not self.found[0]:
            path = self.config["path"]
            where = "in the Hugging Face cache" if is_hub_id(path) else "there"
            yield f"{at}.model.path: {path} is absent (no complete model {where}); edits of it are not seen"

    def problems(self, at: str, known: bool) -> Iterator[str]:
        """Yield a line where the checkpoint cannot be used, or its size is not known in any way."""
        problem = self.found[1]
        if isinstance(problem, ConfigError):
            yield f"{at}.model.path: {problem}"
        elif not known:
            yield f"{at}.model.path: {problem}; or state `shape`, so that everything else can be planned without it"

    def misstated(self, at: str, found: Mapping[str, Any], stated: Mapping[str, Any] | None) -> Iterator[str]:
        """Yield a line where the stated size is not the checkpoint's."""
        wrong = [key for key in stated or () if stated and found[key] != stated[key]]
        if wrong and stated:
            words = "; ".join(f"{key} is {found[key]}, not {stated[key]}" for key in wrong)
            yield f"{at}.model.shape: {words}; correct or remove it"
