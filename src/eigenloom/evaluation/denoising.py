"""What denoising is worth: hits found, decibels gained, beside simpler ways to do it.

Truth is the clean flux and the hits of a simulated survey; where there is none, hits are injected into a copy.
A hit counts as *strong* where it adds more than five sigma. Rivals are given what flatters them: the rank, space or
window is the one with the highest gain, which needs the truth to know.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.ndimage import median_filter

from eigenloom.batches import generator
from eigenloom.sources.denoising import HITS
from eigenloom.sources.pursuit import Pursuit, column_median, decompose_spectra, row_errors
from eigenloom.sources.spectra import PIECE_BYTES
from eigenloom.sources.survey import Survey
from eigenloom.store.hdf5 import open_hdf5, open_matrix
from eigenloom.store.hdf5_reading import MatrixReader

STRONG = 5.0
AMPLITUDES = (0.0, 3.0, 5.0, 10.0, 20.0, 50.0)
"""Edges, in sigma, of the bins that recall is reported by; the last one is open."""
RANKS = (1, 2, 5, 10, 20, 40, 80)
WINDOWS = (3, 5, 7, 9, 15)
RIVAL_NUMBERS, RIVAL_ROWS = 1 << 19, 512
"""Flux values on which rivals are tried, and the least number of spectra: all, or seeded ones where there are more."""
PLAIN_ITERATIONS = 40
INJECTED_RATE, INJECTED_SIGMA = 0.005, 20.0
CLEAN, TRUE_HITS = "truth/clean", "truth/hits"
LISTED = 5


@dataclass
class Tally:
    """Sums from which the scores follow; blocks of spectra are added in any number."""

    found: int = 0
    right: int = 0
    strong: int = 0
    strong_found: int = 0
    planted: np.ndarray = field(default_factory=lambda: np.zeros(len(AMPLITUDES), np.int64))
    recalled: np.ndarray = field(default_factory=lambda: np.zeros(len(AMPLITUDES), np.int64))
    errors: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))

    def add(
        self,
        flux: np.ndarray,
        sigma: np.ndarray,
        clean: np.ndarray,
        hits: np.ndarray,
        low: np.ndarray,
        found: np.ndarray,
    ) -> None:
        """Add spectra: flux, sigma, truth, what was made of them, and where hits were found; all ``[b, m]``."""
        hits, found = hits.astype(bool), found.astype(bool)
        height = (flux - clean)[hits] / sigma[hits]
        seen = found[hits]
        self.found += int(found.sum())
        self.right += int(seen.sum())
        self.strong += int((height > STRONG).sum())
        self.strong_found += int((seen & (height > STRONG)).sum())
        bins = np.clip(np.searchsorted(AMPLITUDES, height, side="right") - 1, 0, None)
        self.planted += np.bincount(bins, minlength=len(AMPLITUDES))
        self.recalled += np.bincount(bins, weights=seen, minlength=len(AMPLITUDES)).astype(np.int64)
        for place, values in enumerate((flux, low)):
            squares = (values.astype(np.float64) - clean) ** 2
            self.errors[place] += squares.sum(), squares[~hits].sum()

    def scores(self) -> dict[str, Any]:
        """Return precision, recalls, and gains in decibels; None where nothing was there to be counted."""
        gains = [
            10 * float(np.log10(before / after)) if before > 0 and after > 0 else None
            for before, after in self.errors.T
        ]
        return {
            "found": self.found,
            "precision": _ratio(self.right, self.found),
            "recall_strong": _ratio(self.strong_found, self.strong),
            "recall": [_ratio(int(a), int(b)) for a, b in zip(self.recalled, self.planted, strict=True)],
            "planted": self.planted.tolist(),
            "snr_gain_db": gains[0],
            "snr_gain_unhit_db": gains[1],
        }


def judge(survey: Survey, denoised: str | Path, pursuit: Pursuit, *, seed: int = 0) -> dict[str, Any]:
    """Score the denoised copy of a survey, with rivals where the truth is known, with injected hits where it is not.

    Args:
        survey: what was denoised; with ``truth/clean`` and ``truth/hits`` where it was simulated.
        denoised: the file that ``denoise_survey`` wrote.
        pursuit: how it was made.
        seed: of the spectra that rivals see, and of injected hits.

    Returns:
        ``pursuit``, the attributes of the file; ``n_spectra``, ``n_hits``; ``pile_up``, the wavelengths where most
        hits are; with truth ``input_snr_db``, ``whole`` (scores over all spectra) and ``methods`` (scores over
        ``n_compared`` spectra, the first of them ours); without it ``injected``.
    """
    with h5py.File(denoised, "r") as file:
        facts = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
        counts = np.zeros(survey.n_pixels, np.int64)
        for piece in _pieces(survey):
            counts += file[HITS][piece].sum(0, dtype=np.int64)
    document = {"pursuit": facts, "n_spectra": survey.n_spectra, "n_hits": int(counts.sum())}
    document |= {"pile_up": _pile_up(counts, survey)}
    chosen = _compared(survey, seed)
    rows = {name: _read(matrix, chosen) for name, matrix in _matrices(survey).items()}
    if "clean" not in rows:
        return {
            **document,
            "n_compared": len(chosen),
            "injected": injected(rows["flux"], rows.get("error"), pursuit, seed),
        }
    low, found = _read(open_matrix(denoised, survey.keys.flux), chosen), _read(open_matrix(denoised, HITS), chosen)
    methods = [{"method": "pcp", "detail": f"rank {facts['rank']}", **_scored(rows, low, found)}]
    methods += rivals(rows, pursuit, facts["rank"], seed)
    whole, power = Tally(), np.zeros(2)
    for piece in _pieces(survey):
        block = {name: _read(matrix, np.arange(piece.start, piece.stop)) for name, matrix in _matrices(survey).items()}
        numbers = np.arange(piece.start, piece.stop)
        made = [_read(open_matrix(denoised, key), numbers) for key in (survey.keys.flux, HITS)]
        whole.add(block["flux"], _sigma(block, facts), block["clean"], block["hits"], *made)
        power += (block["clean"].astype(np.float64) ** 2).sum(), ((block["flux"] - block["clean"]) ** 2).sum()
    snr = 10 * float(np.log10(power[0] / power[1])) if power.min() > 0 else None
    return {**document, "n_compared": len(chosen), "input_snr_db": snr, "whole": whole.scores(), "methods": methods}


def rivals(rows: Mapping[str, np.ndarray], pursuit: Pursuit, rank: int, seed: int) -> list[dict[str, Any]]:
    """Score what else could be done with the same spectra.

    Principal components at the best of ``RANKS`` and at the rank of the pursuit, of the flux or in units of the error,
    whichever gains more; pursuit without the noise term, at most 40 iterations; a running median over ``WINDOWS``
    pixels, and the flux itself with hits against it replaced. Hits are told by the pursuit's own threshold.
    """
    flux, sigma = rows["flux"], rows["error"]
    median, scale = column_median(flux), row_errors(sigma)[:, None]

    def scored(method: str, detail: str, low: np.ndarray, found: np.ndarray | None = None) -> dict[str, Any]:
        found = pursuit.is_hit((flux - low) / sigma) if found is None else found
        return {"method": method, "detail": detail, **_scored(rows, low, found)}

    fits = []
    for space, unit in (("flux", 1.0), ("flux over error", scale)):
        left, values, right = np.linalg.svd((flux - median) / unit, full_matrices=False)
        for r in sorted({*RANKS, rank}):
            if r <= len(values):
                low = (left[:, :r] * values[:r]) @ right[:r] * unit + median
                fits.append((r, scored("pca", f"rank {r}, {space}", low.astype(np.float32))))
    listed = [_best(fit for _, fit in fits)]
    if same := [fit for r, fit in fits if r == rank]:
        listed.append({**_best(same), "method": "pca, same rank"})
    plain = replace(pursuit, lambda_scale=1.0, noise=False, max_iter=PLAIN_ITERATIONS, svd="gram")  # its rank is high
    low, _, history = decompose_spectra(flux, sigma, plain, seed=seed)
    listed.append(scored("plain pcp", f"rank {history['rank'][-1]}, {history['status']}", low))
    filters, clips = [], []
    for window in WINDOWS:
        smooth = median_filter(flux, size=(1, window), mode="nearest")
        found = pursuit.is_hit((flux - smooth) / sigma)
        filters.append(scored("running median", f"{window} pixels", smooth, found))
        clips.append(scored("running-median clip", f"{window} pixels", np.where(found, smooth, flux), found))
    return [*listed, _best(filters), _best(clips)]


def injected(flux: np.ndarray, error: np.ndarray | None, pursuit: Pursuit, seed: int) -> dict[str, Any]:
    """Add hits to a copy of some spectra where there was none, denoise it, and see how many are found.

    Hits are single pixels, ``INJECTED_RATE`` of all, their heights drawn exponentially with mean 20 sigma.
    """
    before, sigma, _ = decompose_spectra(flux, error, pursuit, seed=seed)
    rng = np.random.default_rng([seed, 5])
    good = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0) & ~pursuit.is_hit((flux - before) / sigma)
    places = good & (rng.random(flux.shape) < INJECTED_RATE)
    heights = np.where(places, rng.exponential(INJECTED_SIGMA, flux.shape), 0).astype(np.float32)
    copy = np.where(places, flux + heights * sigma, flux)
    low, sigma, history = decompose_spectra(copy, error, pursuit, seed=seed)
    seen, strong = pursuit.is_hit((copy - low) / sigma)[places], heights[places] > STRONG
    bins = np.clip(np.searchsorted(AMPLITUDES, heights[places], side="right") - 1, 0, None)
    planted = np.bincount(bins, minlength=len(AMPLITUDES))
    recalled = np.bincount(bins, weights=seen, minlength=len(AMPLITUDES))
    return {
        "recall_strong": _ratio(int((seen & strong).sum()), int(strong.sum())),
        "recall": [_ratio(int(a), int(b)) for a, b in zip(recalled, planted, strict=True)],
        "planted": planted.tolist(),
        "status": history["status"],
    }


def examples(survey: Survey, denoised: str | Path, n: int = 3, width: int = 512) -> dict[str, Any]:
    """Return some spectra for a figure: of those with hits the ones at even steps of brightness over noise.

    At most ``width`` pixels around the middle. Lists of numbers rounded to six digits; ``clean`` only with truth.
    """
    hits = _read(open_matrix(denoised, HITS), np.arange(min(survey.n_spectra, 4096)))
    rows = np.flatnonzero(hits.any(1)) if hits.any() else np.arange(len(hits))
    matrices = {
        **_matrices(survey),
        "low": open_matrix(denoised, survey.keys.flux),
        "found": open_matrix(denoised, HITS),
    }
    flux = _read(survey.flux, rows)
    sigma = _read(survey.error, rows) if survey.error is not None else np.ones_like(flux)
    with np.errstate(invalid="ignore", divide="ignore"):
        order = rows[np.argsort(np.nanmedian(flux / sigma, axis=1), kind="stable")]
    places = np.linspace(0, len(order) - 1, 2 * n + 1).astype(int)[1::2]
    first = max(0, (survey.n_pixels - width) // 2)
    window = slice(first, first + width)
    stars = []
    for row in order[places].tolist():
        values = {name: _read(matrix, np.array([row]))[0, window] for name, matrix in matrices.items()}
        stars.append({"row": row, **{name: _rounded(value) for name, value in values.items()}})
    return {"wavelength": _rounded(survey.wavelength[window]), "unit": survey.unit, "spectra": stars}


def _compared(survey: Survey, seed: int) -> np.ndarray:
    """Return the spectra that all methods are tried on, ascending."""
    n = min(survey.n_spectra, max(RIVAL_ROWS, RIVAL_NUMBERS // survey.n_pixels))
    return np.sort(torch.randperm(survey.n_spectra, generator=generator(seed, "rivals"))[:n].numpy())


def _matrices(survey: Survey) -> dict[str, Any]:
    """Return what the file holds of flux, error and truth."""
    found: dict[str, Any] = {"flux": survey.flux}
    if survey.error is not None:
        found["error"] = survey.error
    with open_hdf5(survey.path) as file:
        known = CLEAN in file and TRUE_HITS in file and survey.error is not None
    return found | (
        {"clean": open_matrix(survey.path, CLEAN), "hits": open_matrix(survey.path, TRUE_HITS)} if known else {}
    )


def _read(matrix: Any, rows: np.ndarray) -> np.ndarray:
    """Return rows as float32."""
    values = np.empty((len(rows), matrix.shape[1]), np.float32)
    with MatrixReader(matrix, rows) as reader:
        reader.read(0, values)
    return values


def _pieces(survey: Survey) -> Iterator[slice]:
    """Yield rows of about ``PIECE_BYTES``."""
    n, size = survey.n_spectra, max(1, PIECE_BYTES // (survey.n_pixels * 4))
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def _scored(rows: Mapping[str, np.ndarray], low: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Score all rows at once."""
    tally = Tally()
    tally.add(rows["flux"], rows["error"], rows["clean"], rows["hits"], low, found)
    return tally.scores()


def _best(fits: Any) -> dict[str, Any]:
    """Return the one with the highest gain."""
    return max(fits, key=lambda fit: fit["snr_gain_db"] if fit["snr_gain_db"] is not None else -np.inf)


def _pile_up(counts: np.ndarray, survey: Survey) -> list[dict[str, Any]]:
    """List the wavelengths with most hits, and their share of the spectra: a narrow emission line is sparse, too."""
    order: Sequence[int] = np.argsort(-counts, kind="stable")[:LISTED].tolist()
    return [{"wavelength": float(survey.wavelength[i]), "share": float(counts[i] / survey.n_spectra)} for i in order]


def _sigma(block: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> np.ndarray:
    """Return the error of every pixel, measured where the file has none."""
    return block["error"] if "error" in block else np.full_like(block["flux"], facts["noise_std"])


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(values: np.ndarray) -> list[float | None]:
    """Return numbers to six digits; None for what is none."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
