"""Checkpoints as the rows of a matrix: one flat vector each, streamed by columns, the files gathered a block ahead."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from eigenloom.batches import first_nonfinite
from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.provenance import canonical_json, text_digest
from eigenloom.sources.checkpoint_arrays import open_hdf5, open_npy
from eigenloom.sources.checkpoint_file import Checkpoint
from eigenloom.sources.checkpoint_layout import WeightLayout, layout_of
from eigenloom.sources.checkpoint_ledger import PIECE, Ledger
from eigenloom.sources.checkpoint_safetensors import INDEX_SUFFIX, open_index, open_safetensors
from eigenloom.sources.checkpoint_torch import open_torch
from eigenloom.sources.prefetch import Prefetched
from eigenloom.store.reading import Buffers

SUFFIXES = (".safetensors", INDEX_SUFFIX, ".npy", ".h5", ".hdf5", ".pt", ".pth", ".bin")
PREFERRED = ("model.safetensors.index.json", "model.safetensors")


class Checkpoints:
    """``n_rows`` checkpoints of one layout, ``n_features`` numbers each, as ``ColumnBlocks``.

    No checkpoint is ever held whole: ``column_blocks`` gathers a range of every file. What was read in the first pass
    is digested piece by piece, and each later pass must find the same (``ledger`` carries the digests to the next
    process). Number formats may differ between checkpoints; names and shapes may not.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        tied: Sequence[Sequence[str]] = (),
        key: str | None = None,
        ledger: Path | None = None,
    ) -> None:
        """Open every file, lay out the first, and compare the others with it; no tensor is read.

        Args:
            paths: files, directories with a ``model.safetensors``, or glob patterns, whose matches are sorted.
            include: patterns of tensor names to take; none takes all.
            exclude: patterns of tensor names to leave out.
            tied: groups of names with equal weights that the files store more than once.
            key: the matrix or the group of samples inside HDF5 files.
            ledger: where digests of the first pass are kept for a resumed fit.

        Raises:
            StoreError: a file is missing, damaged, or refused.
            ConfigError: a pattern matches nothing, or the layout cannot be made as asked.
            MismatchError: two checkpoints differ in their tensors; the first three differences are named.
        """
        self.files: list[Checkpoint] = []
        for path in expanded(paths):
            self.files += open_checkpoints(path, key)
        if not self.files:
            raise ConfigError("no checkpoint was given; name files, directories or patterns")
        self.layout = layout_of(self.files[0], include, exclude, tied)
        for file in self.files[1:]:
            agree(self.layout, self.files[0].label, layout_of(file, include, exclude, tied), file.label)
        for file in self.files:
            _check_ties(file, self.layout)
        self.n_rows, self.n_features = len(self.files), self.layout.n_features
        identity = [[file.label, file.n_bytes] for file in self.files]
        self._ledger = Ledger(
            self.n_rows, self.n_features, ledger, text_digest(canonical_json([identity, self.digest]))
        )
        self._memory: dict[int, Buffers] = {}

    @property
    def digest(self) -> str:
        """The layout's digest."""
        return self.layout.digest

    @property
    def labels(self) -> list[str]:
        """What messages call the checkpoints, in order."""
        return [file.label for file in self.files]

    def samples(self) -> list[dict[str, object]]:
        """Return label, bytes and digest of every checkpoint; reads them if no pass has seen all columns.

        The digest is the sha256 of the concatenated sha256 digests of consecutive pieces of ``PIECE`` numbers, float32.
        """
        if not self._ledger.complete:
            for _ in self.column_blocks(PIECE):
                pass
        digests = self._ledger.digests()
        return [
            {"sample": file.label, "bytes": file.n_bytes, "sha256": digest}
            for file, digest in zip(self.files, digests, strict=True)
        ]

    def column_blocks(self, size: int) -> Iterator[Tensor]:
        """Yield consecutive column ranges of ``size`` numbers, ``[n_rows, c]`` float32, the last one shorter.

        A thread reads one block ahead. A block is the caller's; its memory is used again once nobody holds it.

        Raises:
            ConfigError: the size is below 1.
            DataError: a NaN or an infinity, with file, tensor and index.
            MismatchError: a file has changed since the first pass.
            StoreError: a file has become shorter or unreadable.
        """
        if size < 1:
            raise ConfigError(f"block_size: {size}; blocks have at least one column")
        with Prefetched(self._gathered(min(size, self.n_features)), slots=2) as blocks:
            for block in blocks:
                yield block
                del block
                blocks.release()

    def locate(self, row: int, feature: int) -> str:
        """Say where a number lies, for a message: file, tensor, index."""
        return f"{self.labels[row]}: {self.layout.locate(feature)}"

    def _gathered(self, size: int) -> Generator[Tensor, None, None]:
        """Produce the blocks: the same range of every file, finite, and known from the pass before."""
        memory = self._memory.setdefault(size, Buffers(1, self.n_rows * size))
        with closing(self._ledger.walk()) as walk:
            for start in range(0, self.n_features, size):
                width = min(size, self.n_features - start)
                block = memory.take()[0].view(-1)[: self.n_rows * width].view(self.n_rows, width)
                ranges = self.layout.ranges(start, start + width)
                for file, row in zip(self.files, block, strict=True):
                    file.fill(ranges, row)
                if bad := first_nonfinite(block):
                    row_number, column, n_bad = bad
                    value, columns = block[row_number, column].item(), f"columns {start} to {start + width - 1}"
                    raise DataError(
                        f"{self.locate(row_number, start + column)} is {value} ({n_bad} numbers in {columns} are NaN or"
                        " infinite); leave this checkpoint out"
                    )
                for row_number, position in walk.take(start, block):
                    raise MismatchError(
                        f"{self.locate(row_number, position)} or one of the next {PIECE} numbers has changed since the"
                        " first pass; start over with files that nobody writes to"
                    )
                yield block
                del block

    def forget(self) -> None:
        """Delete the ledger's file: the fit it served is done."""
        self._ledger.forget()


def expanded(paths: Iterable[str | Path]) -> list[Path]:
    """Return files: patterns replaced by their sorted matches, all else as it is.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    found: list[Path] = []
    for path in paths:
        path = Path(path)
        if any(sign in str(path) for sign in "*?[") and not path.exists():
            fixed = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if any(s in part for s in "*?["))])
            matches = sorted(fixed.glob(str(path.relative_to(fixed))), key=lambda p: str(p).encode())
            if not matches:
                raise ConfigError(f"{path}: matches no file; check the folder and the pattern")
            found += matches
        else:
            found.append(path)
    return found


def open_checkpoints(path: Path, key: str | None = None) -> list[Checkpoint]:
    """Describe the samples of one file or directory, by its name's ending.

    Raises:
        StoreError: missing, damaged, refused, or of an ending that nothing reads.
        ConfigError: an HDF5 key does not exist, or is needed.
    """
    if path.is_dir():
        found = next((path / name for name in PREFERRED if (path / name).is_file()), None)
        if found is None:
            names = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
            raise StoreError(f"{path}: holds {names}, but no {' or '.join(PREFERRED)}; name the files themselves")
        path = found
    if path.name.endswith(INDEX_SUFFIX):
        return [open_index(path)]
    match path.suffix:
        case ".safetensors":
            return [open_safetensors(path)]
        case ".npy":
            return open_npy(path)
        case ".h5" | ".hdf5":
            return open_hdf5(path, key)
        case ".pt" | ".pth" | ".bin":
            return [open_torch(path)]
    raise StoreError(f"{path}: no checkpoint is read from such a file; endings that are: {', '.join(SUFFIXES)}")


def agree(expected: WeightLayout, first: str, found: WeightLayout, label: str) -> None:
    """Refuse a checkpoint of another layout.

    Raises:
        MismatchError: with the first three differences of each sort.
    """
    if found.digest != expected.digest:
        raise MismatchError(
            f"{label}: is of another model than {first}: it {expected.differences(found)}; leave it out, or narrow both"
            " by include and exclude"
        )


def _check_ties(file: Checkpoint, layout: WeightLayout) -> None:
    """Refuse tied weights that a file stores twice and differently.

    Raises:
        DataError: with both names and the first place.
    """
    for name, target in layout.aliases.items():
        if name not in file.tensors or name in file.aliases:
            continue
        for start in range(0, file.tensors[name].n_numbers, PIECE):
            stop = min(start + PIECE, file.tensors[name].n_numbers)
            one, two = file.read(name, start, stop), file.read(target, start, stop)
            if not torch.equal(one, two):
                place = start + int((one != two).nonzero()[0])
                raise DataError(f"{file.label}: {name!r} and {target!r} are to be tied, but differ at number {place};"
                                " take the group out of `tied`")  # fmt: skip
