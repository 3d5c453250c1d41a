"""Snapshots of unfinished work: saved now and then and once on SIGTERM, resumed from, deleted at the end."""

import json
import logging
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.errors import Interrupted
from eigenloom.provenance import canonical_json
from eigenloom.store.atomic import write_bytes

logger = logging.getLogger("eigenloom")


class Snapshots:
    """One file that carries the state of a loop from one process to the next.

    Use as a context manager around the loop; inside, call ``load`` once and ``tick`` at every step whose state
    can be resumed from. With ``path=None`` nothing is ever saved and SIGTERM keeps its usual meaning.

    The identity (parameters, digests of inputs) travels with the file. A snapshot of another identity is not
    resumed from: it is left with a log line that shows both, and overwritten by the next save.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any], every_seconds: float = 30.0):
        """Name the file, what the work is, and how often to save."""
        self._path = None if path is None else Path(path)
        self._identity = canonical_json(identity)
        self._every = every_seconds
        self._last = time.monotonic()
        self._terminated = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        """Begin to listen for SIGTERM (only a main thread can)."""
        if self._path is not None and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; a finished loop deletes its snapshot."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if kind is None and self._path is not None:
            self._path.unlink(missing_ok=True)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second one changes nothing."""
        self._terminated = True

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return ``(tensors, position)`` of the last save, or None when there is nothing to resume from."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:  # safetensors raises its own type
            logger.warning("%s: cannot be read (%s); starting over", self._path, error)
            return None
        if header.get("identity") != self._identity:
            logger.warning(
                "%s: belongs to %s, not to %s; starting over", self._path, header.get("identity"), self._identity
            )
            return None
        position = json.loads(header["position"])
        logger.info("resuming from %s at %s", self._path, position)
        return tensors, position

    def due(self) -> bool:
        """Say whether ``tick`` would save now: time has passed, or a SIGTERM has arrived."""
        return self._path is not None and (self._terminated or time.monotonic() - self._last >= self._every)

    def tick(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save if it is time, and stop here if a SIGTERM has arrived.

        Guard an expensive collection of state by ``if snapshots.due()``.

        Raises:
            Interrupted: after saving, when SIGTERM arrived.
        """
        if self._path is None or not self.due():
            return
        header = {"identity": self._identity, "position": canonical_json(position)}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self._path, format_safetensors(stored, metadata=header))
        self._last = time.monotonic()
        if self._terminated:
            raise Interrupted(f"stopped by SIGTERM at {canonical_json(position)}; run the same command to resume")
