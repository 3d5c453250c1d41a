"""What a pass over checkpoints read, piece by piece, so that a later pass can be held against it."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.store.atomic import write_bytes

PIECE = 1 << 18
"""Numbers of a row that share a digest; fixed, so that digests do not depend on the size of blocks."""
logger = logging.getLogger("eigenloom")


class Ledger:
    """sha256 digests, uint8 ``[n_rows, n_pieces, 32]``, of pieces of ``PIECE`` float32 numbers; from the first pass."""

    def __init__(self, n_rows: int, n_features: int, path: Path | None, identity: str) -> None:
        """Begin empty, or with what an earlier process left at ``path`` about the same files."""
        self.n_features = n_features
        n_pieces = -(-n_features // PIECE)
        self.pieces = torch.zeros(n_rows, n_pieces, 32, dtype=torch.uint8)
        self.known = torch.zeros(n_pieces, dtype=torch.bool)
        self._path, self._identity = path, identity
        if path is not None and path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("identity") == identity:
                        self.pieces, self.known = file.get_tensor("pieces"), file.get_tensor("known")
            except Exception as error:  # safetensors raises its own type
                logger.warning("%s: cannot be read (%s); digests are taken anew", path, error)

    def walk(self) -> "Walk":
        """Begin a pass."""
        return Walk(self)

    @property
    def complete(self) -> bool:
        """Whether every piece has been read."""
        return bool(self.known.all())

    def digests(self) -> list[str]:
        """Return one digest per row: the sha256 of its pieces' digests, one after the other."""
        assert self.complete, "digests are known only after a pass over all columns"
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in self.pieces]

    def keep(self) -> None:
        """Write to the file, if there is one."""
        if self._path is not None:
            tensors = {"pieces": self.pieces, "known": self.known}
            write_bytes(self._path, format_safetensors(tensors, metadata={"identity": self._identity}))

    def forget(self) -> None:
        """Delete the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Walk:
    """One pass from the first column on: takes blocks, and yields what differs from an earlier pass."""

    def __init__(self, ledger: Ledger) -> None:
        """Begin before the first block."""
        self._ledger = ledger
        self._running = [hashlib.sha256() for _ in ledger.pieces]
        self._learned = False

    def take(self, start: int, block: Tensor) -> Iterator[tuple[int, int]]:
        """Digest the next block ``[n_rows, c]``, from column ``start`` on; yield (row, first column of a piece)."""
        first, stop = start, start + block.shape[1]
        while first < stop:
            piece = first // PIECE
            end = min((piece + 1) * PIECE, self._ledger.n_features)
            for running, row in zip(self._running, block[:, first - start : end - start], strict=True):
                running.update(row.numpy())
            if end <= stop:
                yield from self._finish(piece)
            first = min(end, stop)

    def _finish(self, piece: int) -> Iterator[tuple[int, int]]:
        """Compare a piece, or learn it."""
        digests = torch.stack([torch.frombuffer(bytearray(h.digest()), dtype=torch.uint8) for h in self._running])
        self._running = [hashlib.sha256() for _ in self._running]
        if not self._ledger.known[piece]:
            self._ledger.pieces[:, piece], self._ledger.known[piece] = digests, True
            self._learned = True
            return
        for row in (digests != self._ledger.pieces[:, piece]).any(1).nonzero().flatten().tolist():
            yield row, piece * PIECE

    def close(self) -> None:
        """End the pass; what was learned is kept."""
        if self._learned:
            self._ledger.keep()
