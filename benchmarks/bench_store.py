"""Activation store: reading in stored and shuffled order, warm and cold, and writing, beside what the disk can do."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import compare

from eigenloom.sources.activations import ActivationRows
from eigenloom.store.protocol import Layout, Metadata, encode_data
from eigenloom.store.reading import aligned
from eigenloom.store.recording import ActivationStore, open_store
from eigenloom.store.writer import write_shard, write_store

BATCH = 8192


def run(full: bool) -> list[dict[str, Any]]:
    """Return the records of all jobs."""
    size = (1 << 30) if full else (128 << 20)
    rounds = 7 if full else 3
    records = []
    with tempfile.TemporaryDirectory() as directory:
        for width, tokens in ((1024, 256), (96, 64)):
            store = recorded(Path(directory, str(width)), size, width, tokens)
            records += [warm(store, rounds), shuffled(store, rounds), cold(store, rounds, full)]
        records.append(per_token(recorded(Path(directory, "small"), 32 << 20, 1024, 256), min(rounds, 3)))
        records.append(written(Path(directory, "written"), size, rounds))
    return records


def recorded(directory: Path, size: int, width: int, tokens: int) -> ActivationStore:
    """Record noise: about ``size`` bytes, two layers, CLS, four shards."""
    vectors = 2 * (tokens + 1)
    n_examples = max(4, size // (vectors * width * 4))
    layout = Layout(n_examples, (1, 3), tokens, True, width, -(-n_examples // 4) * vectors)
    noise = np.random.default_rng(0).standard_normal((1, 2, tokens + 1, width), dtype=np.float32)
    shards = []
    for shard in range(layout.n_shards):
        first, stop = layout.shard_range(shard)
        shards.append(write_shard(directory, layout, shard, (noise + i for i in range(first, stop))))
    metadata = Metadata(
        "fake-clip", "noise", layout.layers, tokens, True, width, n_examples, layout.max_tokens_per_shard,
        encode_data({}), "noise",
    )  # fmt: skip
    write_store(directory, metadata, source="noise", split="fit_train", shards=shards, signature={})
    return open_store(directory)


def settings(store: ActivationStore) -> dict[str, Any]:
    """Describe a recording."""
    mib = store.n_rows * store.d_model * 4 / (1 << 20)
    return {"rows": store.n_rows, "d": store.d_model, "layer_mib": round(mib), "layers": 2, "batch": BATCH}


def total(batches: Iterator[torch.Tensor]) -> float:
    """Walk batches, touching one number of each: what it costs to deliver them, nothing more."""
    return sum(float(batch[0, 0]) for batch in batches)


def readinto(store: ActivationStore) -> Callable[[], float]:
    """Return the limit: a bare ``readinto`` loop over the same byte ranges into the memory of one batch."""
    memory = aligned(BATCH, store.d_model).data.cast("B")
    layout = store.layout
    offset = (layout.tokens_per_example + 1) * store.d_model * 4
    piece = store.tokens_per_example * store.d_model * 4
    slots = [memory[first : first + piece] for first in range(0, len(memory), piece)]

    def work() -> float:
        checksum = 0.0
        for shard in store.shards:
            with open(store.directory / shard.name, "rb", buffering=0) as file:
                for example in range(shard.n_examples):
                    file.seek(example * layout.example_bytes + offset)
                    file.readinto(slots[example % len(slots)])
            checksum += memory[0]
        return checksum

    return work


def memmap_slices(store: ActivationStore) -> Callable[[], float]:
    """Return a peer: one memmap per shard, batches by slicing and copying."""
    layout = store.layout
    shape = (layout.examples_per_shard, 2, layout.tokens_per_example, store.d_model)
    step = BATCH // store.tokens_per_example

    def work() -> float:
        checksum = 0.0
        for shard in store.shards:
            acts = np.memmap(store.directory / shard.name, np.float32, "r", shape=shape)
            for first in range(0, shard.n_examples, step):
                stop = min(first + step, shard.n_examples)
                batch = torch.from_numpy(np.array(acts[first:stop, 1, 1:])).reshape(-1, store.d_model)
                checksum += float(batch[0, 0])
        return checksum

    return work


def memmap_per_token(store: ActivationStore) -> Callable[[], float]:
    """Return a peer that opens a memmap for every token, as saev's ordered loader does (here without its processes)."""
    layout = store.layout
    shape = (layout.examples_per_shard, 2, layout.tokens_per_example, store.d_model)

    def work() -> float:
        checksum, batch = 0.0, []
        for row in range(store.n_rows):
            example, token = divmod(row, store.tokens_per_example)
            shard, inside = divmod(example, store.examples_per_shard)
            acts = np.memmap(store.directory / store.shards[shard].name, np.float32, "r", shape=shape)
            batch.append(torch.from_numpy(np.array(acts[inside, 1, token + 1])))
            if len(batch) == BATCH or row == store.n_rows - 1:
                checksum, batch = checksum + float(torch.stack(batch)[0, 0]), []
        return checksum

    return work


def random_rows(store: ActivationStore) -> Callable[[], float]:
    """Return a peer that shuffles exactly: one positioned read per row, in a random order."""
    layout = store.layout
    row_bytes = store.d_model * 4

    def work() -> float:
        files = [os.open(store.directory / shard.name, os.O_RDONLY) for shard in store.shards]
        order = torch.randperm(store.n_rows).tolist()
        memory = aligned(BATCH, store.d_model).data.cast("B")
        for place, row in enumerate(order):
            example, token = divmod(row, store.tokens_per_example)
            shard, inside = divmod(example, store.examples_per_shard)
            start = inside * layout.example_bytes + (layout.tokens_per_example + 1 + token) * row_bytes
            slot = place % BATCH * row_bytes
            os.preadv(files[shard], [memory[slot : slot + row_bytes]], start)
        for file in files:
            os.close(file)
        return float(len(order))

    return work


def warm(store: ActivationStore, rounds: int) -> dict[str, Any]:
    """Time stored order with the files in memory."""
    rows = ActivationRows(store, 3, batch_size=BATCH)
    peers = {"eigenloom": lambda: total(iter(rows)), "memmap slices": memmap_slices(store)}
    return compare(
        "stored order, warm", peers, rounds=rounds, settings=settings(store),
        limits={"readinto, one buffer": readinto(store)}, target=">= 95 % of readinto",
    )  # fmt: skip


def shuffled(store: ActivationStore, rounds: int) -> dict[str, Any]:
    """Time block shuffle beside stored order, the files in memory."""
    rows = ActivationRows(store, 3, batch_size=BATCH)
    peers = {
        "eigenloom": lambda: total(rows.shuffled(torch.Generator().manual_seed(0))),
        "one read per row": random_rows(store) if store.d_model >= 512 else None,
    }
    return compare(
        "block shuffle, warm", peers, rounds=rounds, settings=settings(store),
        limits={"stored order": lambda: total(iter(rows))}, target=">= 80 % of stored order",
    )  # fmt: skip


def cold(store: ActivationStore, rounds: int, full: bool) -> dict[str, Any]:
    """Time every order with the files dropped from memory before each walk; wall seconds are what counts."""
    rows = ActivationRows(store, 3, batch_size=BATCH)

    def dropped(work: Callable[[], float]) -> Callable[[], float]:
        def cold_work() -> float:
            for shard in store.shards:
                file = os.open(store.directory / shard.name, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
            return work()

        return cold_work

    peers = {
        "eigenloom": dropped(lambda: total(iter(rows))),
        "eigenloom, shuffled": dropped(lambda: total(rows.shuffled(torch.Generator().manual_seed(0)))),
        "memmap slices": dropped(memmap_slices(store)),
    }
    return compare(
        "stored order, cold", peers, rounds=rounds, settings=settings(store),
        limits={"readinto, one buffer": dropped(readinto(store))},
        target="wall: >= 95 % of readinto, shuffled >= 80 % of stored",
    )  # fmt: skip


def per_token(store: ActivationStore, rounds: int) -> dict[str, Any]:
    """Time the naive loader; on a small recording, it is that slow."""
    rows = ActivationRows(store, 3, batch_size=BATCH)
    peers = {"eigenloom": lambda: total(iter(rows)), "a memmap per token": memmap_per_token(store)}
    return compare(
        "stored order, small, warm", peers, rounds=rounds, settings=settings(store),
        target=">= 15x a loader that opens a memmap per token",
    )  # fmt: skip


def written(directory: Path, size: int, rounds: int) -> dict[str, Any]:
    """Time writing one shard, digest and fsync included."""
    vectors = 2 * 257
    n_examples = max(1, size // 8 // (vectors * 4096))
    layout = Layout(n_examples, (1, 3), 256, True, 1024, n_examples * vectors)
    batch = np.random.default_rng(0).standard_normal((1, 2, 257, 1024), dtype=np.float32)
    fresh = map(str, itertools.count())  # replacing a big file costs more than writing one; no job does it

    def raw() -> Path:
        path = directory / next(fresh)
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            for _ in range(n_examples):
                file.write(batch.data)
            os.fsync(file.fileno())
        return path

    def hash_after() -> str:
        with open(raw(), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def digest_only() -> str:
        hasher = hashlib.sha256()
        for _ in range(n_examples):
            hasher.update(batch.data)
        return hasher.hexdigest()

    peers = {
        "eigenloom": lambda: write_shard(directory / next(fresh), layout, 0, (batch for _ in range(n_examples))),
        "write, then hash": hash_after,
    }
    return compare(
        "write one shard with sha256", peers, rounds=rounds,
        settings={"mib": layout.shard_bytes >> 20, "layers": 2, "d": 1024},
        limits={"raw write and fsync": raw, "sha256 alone": digest_only}, target=">= 95 % of a raw write",
    )  # fmt: skip
