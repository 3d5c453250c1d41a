"""Top-K errors for every K against a loop over K, and writing codes against its two unavoidable parts."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import compare

from eigenloom.bases.pca import PCA
from eigenloom.codes.layouts import layout_for
from eigenloom.codes.residuals import Tails
from eigenloom.codes.writing import ShardRows, write_part
from eigenloom.moments import Standardization
from eigenloom.sources.arrays import ArrayRows
from eigenloom.store.atomic import atomic_file

SWEEP = (1, 4, 16, 64, 256, 1024)


def run(full: bool) -> list[dict[str, Any]]:
    """Time a basis of full rank, one of a quarter of it, and both layouts of its codes."""
    n, shapes = (32768, [(96, 96), (1024, 1024), (1024, 256)]) if full else (8192, [(96, 96), (384, 384), (384, 96)])
    records = []
    for d, k in shapes:
        basis = planted_pca(d, k)
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.1, d)
        records.append(every_k(basis, x))
        records += [written(basis, x, layout) for layout in ("topk", "dense")]
    return records


def planted_pca(d: int, k: int) -> PCA:
    """Random orthonormal directions in the dress of a fitted basis."""
    components = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0))).Q[:k].contiguous()
    return PCA(
        standardization=Standardization.identity(d),
        mean=torch.zeros(d),
        components=components,
        explained_variance=torch.ones(k, dtype=torch.float64),
        spectrum_history=torch.zeros(0, 1),
        total_variance=float(d),
        rank=k,
        rank_tol=1e-7,
        rows_used=0,
        whiten=False,
    )


def every_k(basis: PCA, x: torch.Tensor) -> dict[str, Any]:
    """NMSE of the swept K (ours gives all of 1..k): encode included, batches of 8192."""
    ks = [kept for kept in SWEEP if kept < basis.n_elements] + [basis.n_elements]
    tails = Tails.of(basis)
    assert tails is not None
    denominator = x.square().sum(dtype=torch.float64)

    def ours() -> torch.Tensor:
        return sum(tails.column_sums(batch, basis.encode(batch))[0] for batch in x.split(8192))[ks] / denominator

    def loop() -> torch.Tensor:
        sums = torch.zeros(len(ks), dtype=torch.float64)
        for batch in x.split(8192):
            z = basis.encode(batch)
            for i, kept in enumerate(ks):
                codes = z
                if kept < z.shape[1]:
                    chosen = z.abs().topk(kept, dim=1).indices
                    codes = torch.zeros_like(z).scatter_(1, chosen, z.gather(1, chosen))
                sums[i] += (batch - basis.decode(codes)).square().sum(dtype=torch.float64)
        return sums / denominator

    def encode_only() -> None:
        for batch in x.split(8192):
            basis.encode(batch)

    return compare(
        f"NMSE at every K, d={x.shape[1]}, k={basis.n_elements}",
        {"eigenloom": ours, "loop over K with torch.topk and decode": loop},
        settings={"n": len(x), "d": x.shape[1], "k": basis.n_elements, "K": ks},
        quality=lambda nmse: {f"nmse@{kept}": value for kept, value in zip(ks, nmse.tolist(), strict=True)},
        limits={"encode only": encode_only},
        target="4x",
    )


def written(basis: PCA, x: torch.Tensor, name: str) -> dict[str, Any]:
    """Encode rows and write a part: against the same encoding without files, and the same bytes without encoding."""
    layout = layout_for(basis, {"layout": name, "stored_k": min(64, basis.n_elements)})
    directory = Path(tempfile.mkdtemp(prefix="bench-codes-"))
    rows = ArrayRows(x)
    n_bytes = sum(entry["bytes"] for entry in _write(directory, rows, layout).values())
    data = bytes(n_bytes)

    def compute() -> None:
        for batch in rows:
            layout.encode(batch)

    def raw_write() -> None:
        with atomic_file(directory / "raw.bin") as file:
            for start in range(0, n_bytes, 1 << 22):
                file.write(memoryview(data)[start : start + (1 << 22)])

    def encode_only() -> None:
        for batch in rows:
            basis.encode(batch)

    return compare(
        f"encode and write, {name}, d={x.shape[1]}, k={basis.n_elements}",
        {"eigenloom": lambda: _write(directory, rows, layout)},
        settings={"n": len(x), "d": x.shape[1], "k": basis.n_elements, "bytes": n_bytes},
        limits={
            "codes, errors and statistics": compute,
            "write, sha256, fsync": raw_write,
            "basis.encode": encode_only,
        },
        target="max(compute, raw write) in wall time",
    )


def _write(directory: Path, rows: ArrayRows, layout: Any) -> dict[str, Any]:
    """Write one part; return the entries that name files."""
    entries = write_part(directory, 0, [ShardRows(0, rows, "rows")], layout)
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
