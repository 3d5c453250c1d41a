"""Write one part of code files: arrays, errors and statistics of whole activation shards."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.codes.coding import refuse_nonfinite
from eigenloom.codes.layouts import DTYPES, EncodedBatch, Layout
from eigenloom.errors import DataError
from eigenloom.progress import Progress
from eigenloom.store.atomic import HashingFile, atomic_file, explained

FILE_LIMIT = 4 << 30
"""No file of code values grows beyond this; wider codes are cut into blocks of columns."""
SILENT = Progress()


@dataclass(frozen=True)
class ShardRows:
    """The raw rows of one activation shard and the words for it in messages."""

    shard: int
    rows: Batches
    where: str


@dataclass
class _Array:
    """One array on its way into one file, or several of ``block`` columns each."""

    dtype: str
    width: int | None
    block: int
    files: list[tuple[str, HashingFile]] = field(default_factory=list)

    def write(self, values: Tensor) -> None:
        """Append rows."""
        values = values.to(DTYPES[self.dtype]).cpu()
        for number, (_, file) in enumerate(self.files):
            part = values if self.width is None else values[:, number * self.block : (number + 1) * self.block]
            file.write(part.contiguous().numpy().astype(self.dtype, copy=False).data.cast("B"))

    def facts(self, n_rows: int) -> dict[str, Any]:
        """The array's entry in the edge."""
        shape = [n_rows] if self.width is None else [n_rows, self.width]
        files = [{"file": name, "bytes": file.n_bytes, "sha256": file.sha256} for name, file in self.files]
        if len(files) == 1:
            return {**files[0], "dtype": self.dtype, "shape": shape}
        return {"dtype": self.dtype, "shape": shape, "features_per_file": self.block, "blocks": files}


def write_part(
    directory: Path,
    part: int,
    shards: Sequence[ShardRows],
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    features_per_file: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Encode the rows of whole shards into ``part-NNNNN.*`` files; the caller writes the edge that lists them.

    Args:
        directory: made if missing.
        part: number of the part.
        shards: raw rows, in stored order.
        layout: what to store.
        device: where to encode.
        features_per_file: columns per file; by default as many as stay below 4 GiB.
        progress: a bar over the rows.

    Returns:
        ``n_rows``, ``shards``, ``shard_rows``, one entry per array, ``errors`` and ``stats``.

    Raises:
        DataError: a code is NaN or infinite, or overflows its dtype.
        StoreError: the files cannot be written.
    """
    directory, stem = Path(directory), f"part-{part:05d}"
    with explained(directory):
        (directory / f"{stem}.json").unlink(missing_ok=True)  # an edge must not outlive the files it describes
    shard_rows = [shard.rows.n_rows for shard in shards]
    n_rows, statistics = sum(shard_rows), None
    columns = {**layout.columns(), "errors": ("<f4", len(layout.error_ks))}
    with ExitStack() as stack:
        arrays = {
            name: _open(stack, directory, f"{stem}.{name}", dtype, width, n_rows, features_per_file)
            for name, (dtype, width) in columns.items()
        }
        for shard in shards:
            for encoded in _encoded(shard, layout, device, progress):
                for name, array in arrays.items():
                    array.write(encoded.errors if name == "errors" else encoded.arrays[name])
                found = encoded.statistics
                statistics = found if statistics is None else statistics.merge(found)
    assert statistics is not None
    assert statistics.n_rows == n_rows
    stats = directory / f"{stem}.stats.safetensors"
    sha256 = statistics.save(stats)
    entries = {name: array.facts(n_rows) for name, array in arrays.items()}
    entries["errors"]["ks"] = layout.error_ks
    stats_facts = {"file": stats.name, "bytes": stats.stat().st_size, "sha256": sha256}
    return {
        "n_rows": n_rows,
        "shards": [shard.shard for shard in shards],
        "shard_rows": shard_rows,
        **entries,
        "stats": stats_facts,
    }


def _open(
    stack: ExitStack, directory: Path, stem: str, dtype: str, width: int | None, n_rows: int, block: int | None
) -> _Array:
    """Open the files of one array."""
    itemsize = torch.empty((), dtype=DTYPES[dtype]).element_size()
    whole = width or 1
    block = min(whole, block or max(1, FILE_LIMIT // (itemsize * max(n_rows, 1))))
    starts = range(0, whole, block)
    names = [f"{stem}.bin"] if len(starts) == 1 else [f"{stem}-{start:06d}.bin" for start in starts]
    files = [(name, stack.enter_context(atomic_file(directory / name))) for name in names]
    return _Array(dtype, width, block, files)


def _encoded(
    shard: ShardRows, layout: Layout, device: torch.device | str, progress: Progress
) -> Iterator[EncodedBatch]:
    """Encode the batches of one shard and refuse codes that are not finite."""
    first, n_features = 0, layout.basis.n_features
    if shard.rows.n_features != n_features:
        raise DataError(f"{shard.where}: rows of {shard.rows.n_features} features, but the basis takes {n_features}")
    for batch in progress.track(shard.rows, "encode", shard.rows.n_rows):
        encoded = layout.encode(layout.basis.standardization.apply(batch.to(device)))
        refuse_nonfinite(encoded.arrays, shard.where, first)
        yield encoded
        first += len(batch)
