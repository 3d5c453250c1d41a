"""What the numbers say, in sentences: every word that could be otherwise is decided by a comparison made here.

Numbers are compared as they are printed, with three decimals: what prints alike is called equal. Codings and layers are
chosen by Probe R on ``probe_train``, and what is said of them is read on ``probe_val``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eigenloom.report.clusters import cluster_use
from eigenloom.report.evidence import Evidence
from eigenloom.report.races import race_sentences
from eigenloom.report.tables import CHOSEN_BY, number

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One sentence, and how it should be taken: ``plain``, ``good`` or ``warning``; ``paths`` hold its numbers.

    ``topic`` is the heading under which the page shows it.
    """

    text: str
    tone: str = "plain"
    paths: tuple[str, ...] = ()
    topic: str = ""


def find(evidence: Evidence) -> list[Finding]:
    """State what the results of every source show; what is missing comes last."""
    found = [
        replace(finding, topic=source)
        for source in evidence.sources
        for rule in RULES
        for finding in rule(evidence, source)
    ]
    found += [Finding(sentence, topic="optimizers") for sentence in race_sentences(evidence.races)]
    found += [replace(finding, topic="this run") for finding in _seeds(evidence)]
    missing = [name for table in evidence.tables for name in table["missing"]]
    return found + [Finding(f"Missing: {name}.", "warning", topic="this run") for name in missing]


def leading_codings(evidence: Evidence, source: str) -> dict[str, list[Document]]:
    """Return, for each basis of a source, the rows over layers of the coding with the highest Probe R on train."""
    rows = [r for r in evidence.results if r["source"] == source and r.get(CHOSEN_BY) is not None]
    leading: dict[str, list[Document]] = {}
    for basis in sorted({row["basis"] for row in rows}):
        own = [row for row in rows if row["basis"] == basis]
        coding = chosen_row(own)["coding"]
        leading[basis] = sorted((row for row in own if row["coding"] == coding), key=lambda row: row["layer"])
    return leading


def chosen_row(rows: Sequence[Document]) -> Document:
    """Return the row with the highest Probe R on the training split, the first of equals."""
    return max(rows, key=lambda row: row[CHOSEN_BY])


def compare(a: float, b: float) -> int:
    """Return 1, 0 or -1 as ``a`` is above, equal to or below ``b`` at the three decimals that are printed."""
    return (round(a, 3) > round(b, 3)) - (round(a, 3) < round(b, 3))


def method(row: Document) -> str:
    """Name a row's method and layer."""
    return f"{row['basis']} ({row['coding']}, {row['layer']})"


def _best_probe(evidence: Evidence, source: str) -> Iterator[Finding]:
    """Which method's single features know most about the classes."""
    rows = [chosen_row(rows) for rows in leading_codings(evidence, source).values()]
    if not rows:
        return
    best = chosen_row(rows)
    probe_r = best.get("probe_r")
    if probe_r is not None and compare(probe_r, 0) > 0:
        knows = f"they remove {100 * probe_r:.1f} % of the label entropy (Probe R {number(probe_r)})"
    else:
        knows = f"they predict labels no better than class frequencies do (Probe R {number(probe_r) or 'unknown'})"
    text = (
        f"The training split prefers the features of {method(best)}: on rows not trained on {knows} and reach an mAP of"
        f" {number(best.get('map'))}"
    )
    constant = evidence.constant(best) or {}
    tail = f"; a constant score has {number(constant['map'])}." if constant.get("map") is not None else "."
    yield Finding(text + tail, "plain", _paths(best))


def _floors(evidence: Evidence, source: str) -> Iterator[Finding]:
    """Does each basis beat random features of the same number, under its own best coding and layer."""
    for rows in leading_codings(evidence, source).values():
        row = chosen_row(rows)
        floor = evidence.floor(row)
        if floor is None or row.get("probe_r") is None or floor.get("probe_r") is None:
            yield Finding(f"{method(row)} has no random floor, so its scores cannot be judged.", "warning", _paths(row))
            continue
        signs = {
            compare(row[key], floor[key]) for key in ("probe_r", "map") if None not in (row.get(key), floor.get(key))
        }
        numbers = (
            f"Probe R {number(row['probe_r'])} against {number(floor['probe_r'])},"
            f" mAP {number(row.get('map'))} against {number(floor.get('map'))}"
        )
        random = _random_words(evidence, row)
        if signs == {1}:
            no_more = compare(row["probe_r"], 0) <= 0
            tail = " Yet it predicts labels no better than class frequencies do." if no_more else ""
            yield Finding(
                f"{method(row)} beats {random}: {numbers}.{tail}", "plain" if no_more else "good", _paths(row)
            )
        elif 1 not in signs and -1 in signs:
            yield Finding(
                f"Random wins: {random} beat {method(row)}: {numbers}. Taken one by one, its features know less than"
                f" random ones{_other_codings(evidence, row)}.",
                "warning",
                _paths(row),
            )
        elif signs == {0}:
            yield Finding(f"{method(row)} equals {random}: {numbers}.", "warning", _paths(row))
        else:
            yield Finding(f"{method(row)} and {random} each win one metric: {numbers}.", "warning", _paths(row))


def _other_codings(evidence: Evidence, row: Document) -> str:
    """Say how many of a basis's codings at this layer do beat their floor in Probe R."""
    pairs = [
        (other["probe_r"], (evidence.floor(other) or {}).get("probe_r"))
        for other in evidence.results
        if all(other[name] == row[name] for name in ("source", "layer", "basis")) and other.get("probe_r") is not None
    ]
    won = sum(floor is not None and compare(value, floor) > 0 for value, floor in pairs)
    return f"; of its {len(pairs)} codings there, {won} beat their own floor" if len(pairs) > 1 else ""


def _random_words(evidence: Evidence, row: Document) -> str:
    """Say what the random features of a row's floor are."""
    document = evidence.metrics.get(str(row["path"]), {})
    clusters = document.get("geometry") == "distance"
    return "random training rows as centres" if clusters else "random directions of the same number"


def _layers(evidence: Evidence, source: str) -> Iterator[Finding]:
    """Which layer knows most, and whether all bases agree."""
    leading = {basis: rows for basis, rows in leading_codings(evidence, source).items() if len(rows) > 1}
    votes = defaultdict(list)
    for basis, rows in leading.items():
        votes[chosen_row(rows)["layer"]].append(basis)
    if len(votes) == 1:
        (layer,) = votes
        row, others = _split(chosen_row(list(map(chosen_row, leading.values()))), leading)
        rest = ", ".join(f"{number(other[CHOSEN_BY])} at {other['layer']}" for other in others)
        yield Finding(
            f"Every basis knows most at {layer}: for {row['basis']} ({row['coding']}) Probe R on the training split is"
            f" {number(row[CHOSEN_BY])} there, {rest}.",
            "plain",
            _paths(row, *others),
        )
    elif votes:
        words = "; ".join(f"{layer} for {', '.join(bases)}" for layer, bases in sorted(votes.items()))
        yield Finding(f"Bases differ in the layer at which they know most: {words}.")


def _split(row: Document, leading: Mapping[str, list[Document]]) -> tuple[Document, list[Document]]:
    """Return a row and the rows of the same method at other layers."""
    return row, [other for other in leading[row["basis"]] if other["layer"] != row["layer"]]


def _reconstruction(evidence: Evidence, source: str) -> Iterator[Finding]:
    """What equally many active features reconstruct, and whether reconstruction and knowledge go together."""
    for layer in evidence.layers(source)[-1:]:
        yield from _budgets(evidence, source, layer)
    rows = [r for r in evidence.results if r["source"] == source and None not in (r.get("nmse"), r.get(CHOSEN_BY))]
    if len(rows) > 1:
        sharpest, wisest = min(rows, key=lambda row: row["nmse"]), chosen_row(rows)
        same = (sharpest["basis"], sharpest["coding"]) == (wisest["basis"], wisest["coding"])
        if same:
            text = f"{method(wisest)} is what the training split prefers, and reconstructs best, too."
            yield Finding(text, "plain", _paths(wisest))
        else:
            yield Finding(
                f"What reconstructs best does not know most: {method(sharpest)} has the lowest NMSE"
                f" ({number(sharpest['nmse'])}) and a Probe R of {number(sharpest.get('probe_r'))}; {method(wisest)},"
                f" which the training split prefers, has a Probe R of {number(wisest.get('probe_r'))} at an NMSE of"
                f" {number(wisest['nmse'])}.",
                "plain",
                _paths(sharpest, wisest),
            )


def _budgets(evidence: Evidence, source: str, layer: str) -> Iterator[Finding]:
    """Compare bases at every number of active features that at least two of them were measured at."""
    budgets: dict[int, dict[str, float]] = {}
    for (s, place, basis), document in evidence.reconstructions.items():
        if (s, place) == (source, layer) and basis in evidence.bases:
            for entry in document["codings"].values():
                if (
                    entry.get("nominal_l0")
                    and entry["nmse"] is not None
                    and entry["nominal_l0"] < document["basis"]["k"]
                ):
                    budgets.setdefault(entry["nominal_l0"], {})[basis] = entry["nmse"]
    for budget, found in sorted(budgets.items()):
        if len(found) > 1:
            words = ", ".join(f"{basis} {number(value)}" for value, basis in sorted((v, b) for b, v in found.items()))
            features = "one active feature" if budget == 1 else f"{budget} active features"
            yield Finding(f"With {features} per row at {layer}, NMSE is {words} (0 is exact, 1 is the mean).")


def _collapse(evidence: Evidence, source: str) -> Iterator[Finding]:
    """Fits whose clusters collapsed or died."""
    dead = []
    for (s, layer, basis), document in sorted(evidence.reconstructions.items()):
        use = cluster_use(document)
        if s != source or use is None or basis not in evidence.bases:
            continue
        total = use["total"]
        if total["collapsed"]:
            text = f"{basis} at {layer} has collapsed: its effective number of clusters is {total['effective']:.2f}."
            yield Finding(text, "warning")
        elif total["dead"]:
            dead.append(f"{total['dead']} of {basis} at {layer}")
    if dead:
        yield Finding(f"Clusters that meet no row of fit_val: {', '.join(dead)}.")


def _convergence(evidence: Evidence, source: str) -> Iterator[Finding]:
    """Probes whose numbers are less than exact."""
    rows = [row for row in evidence.results if row["source"] == source]
    stuck = [row for row in rows if (row.get("n_pairs_max_iter") or 0) > 0]
    if stuck:
        total = sum(row["n_pairs_max_iter"] for row in stuck)
        words = f"{total:.0f} (feature, class) fits did not converge, in {', '.join(map(method, stuck))}."
        yield Finding(words, "warning")
    rough = [row for row in rows if (row.get("n_pairs_approximate") or 0) > 0]
    if rough:
        total = sum(row["n_pairs_approximate"] for row in rough)
        yield Finding(
            f"{total:.0f} (feature, class) fits rest on histograms alone, in {len(rough)} of {len(rows)} results."
        )


def _seeds(evidence: Evidence) -> Iterator[Finding]:
    """How many runs stand behind the numbers."""
    n_seeds = {row["n_seeds"] for row in evidence.results}
    if n_seeds == {1}:
        yield Finding("One seed was run, so no spread is known: small differences may be chance.")


RULES: tuple[Callable[[Evidence, str], Iterator[Finding]], ...] = (
    _best_probe,
    _floors,
    _layers,
    _reconstruction,
    _collapse,
    _convergence,
)


def _paths(*rows: Document) -> tuple[str, ...]:
    """List the files that rows come from."""
    return tuple(dict.fromkeys(str(row["path"]) for row in rows if row.get("path")))
