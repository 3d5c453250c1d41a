"""Join what the jobs of one recording wrote: check that shards, examples and labels fit, then describe them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenloom.errors import MismatchError, StoreError
from eigenloom.store.atomic import read_json
from eigenloom.store.parsing import first_difference, size_problems
from eigenloom.store.protocol import Layout, Metadata, encode_data, shard_name, shown
from eigenloom.store.writer import write_store

VERSION = 1
SHARD_FORMAT = "eigenloom.shard"
SHARD_KEYS = (
    "format", "version", "shard", "name", "n_examples", "bytes", "sha256", "d_model", "tokens_per_example",
    "cls_token", "layers", "grid", "architecture", "signature", "spec", "inputs",
)  # fmt: skip
LABELS_FORMAT = "eigenloom.labels"
LABELS_KEYS = (
    "format", "version", "name", "sha256", "bytes", "n_examples", "tokens_per_example", "classes", "void", "rule",
    "counts", "spec", "inputs",
)  # fmt: skip
EXAMPLE_LISTS = ("files.json", "rows.npy")
"""What lists the examples beside their edge: images by path, spectra by row."""
COMMON = ("d_model", "tokens_per_example", "cls_token", "layers", "architecture", "signature")


def join_store(
    directory: str | Path,
    spec: Mapping[str, Any],
    *,
    examples: Path,
    shards: Sequence[Path],
    labels: Path | None = None,
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Write ``metadata.json``, ``shards.json`` and ``store.json`` beside recorded shards.

    Args:
        directory: of the shards and of their edges' siblings.
        spec: ``source``, ``split``, ``layers``, ``n_examples``, ``max_tokens_per_shard``, ``ckpt``, ``family``.
        examples: edge of the images or spectra that were recorded.
        shards: edges ``shard-NNNNN.json``, in any order.
        labels: edge ``labels.json``, None without labels.
        inputs: path of every input edge -> sha256 hex.

    Returns:
        sha256 hex digest of ``store.json``.

    Raises:
        StoreError: an edge or its array is missing, damaged or of another format.
        MismatchError: the edges do not belong together; all contradictions are listed, one a line.
        ConfigError: the specification cannot be described in the protocol.
    """
    directory = Path(directory)
    example_facts = read_json(examples)
    edges = [_edge(path, SHARD_FORMAT, SHARD_KEYS) for path in shards]
    label_facts = None if labels is None else _edge(labels, LABELS_FORMAT, LABELS_KEYS)
    if not edges:
        raise MismatchError(f"{directory}: no shard was recorded; run `snakemake {directory}/store.json`")
    ordered = sorted(zip(edges, shards, strict=True), key=lambda pair: pair[0]["shard"])
    edges, paths = [edge for edge, _ in ordered], [path for _, path in ordered]
    first = edges[0]
    layout = Layout(
        spec["n_examples"], tuple(spec["layers"]), first["tokens_per_example"], first["cls_token"], first["d_model"],
        spec["max_tokens_per_shard"],
    )  # fmt: skip
    problems = _shard_problems(edges, paths, layout)
    problems += _example_problems(example_facts, examples, layout)
    if label_facts is not None and labels is not None:
        problems += _label_problems(label_facts, labels, example_facts, layout)
    if problems:
        raise MismatchError("\n".join(problems))
    missing = [text for edge in edges for text in size_problems(directory / edge["name"], layout.shard_bytes)]
    if label_facts is not None:
        missing += size_problems(directory / "labels.bin", label_facts["bytes"])
    if missing:
        raise StoreError("\n".join(missing))
    origin = {key: value for key, value in (example_facts.get("spec") or {}).items() if key != "code"}
    options = origin.get("images", {})
    dataset = example_facts.get("dataset", options.get("root", options.get("kind", spec["source"])))
    metadata = Metadata(
        family=spec["family"], ckpt=spec["ckpt"], layers=layout.layers,
        content_tokens_per_example=layout.content_tokens_per_example, cls_token=layout.cls_token,
        d_model=layout.d_model, n_examples=layout.n_examples, max_tokens_per_shard=layout.max_tokens_per_shard,
        data=encode_data(origin), dataset=str(dataset),
    )  # fmt: skip
    grid = first["grid"] if all(edge["grid"] == first["grid"] for edge in edges) else None
    files = example_facts["files"]
    listed = next((files[name]["sha256"] for name in EXAMPLE_LISTS if name in files), None)
    return write_store(
        directory, metadata, source=spec["source"], split=spec["split"], shards=edges, signature=first["signature"],
        grid=grid, labels=label_facts, files_sha256=listed, spec=dict(spec), inputs=inputs,
    )  # fmt: skip


def _edge(path: Path, form: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read an edge of a known format."""
    edge = read_json(path)
    if not isinstance(edge, dict) or edge.get("format") != form or edge.get("version") != VERSION:
        raise StoreError(f"{path}: is not a {form!r} of version {VERSION}; delete it and run the rule that makes it")
    missing = [key for key in keys if key not in edge]
    if missing:
        raise StoreError(f"{path}: lacks {', '.join(missing)}; delete it and run the rule that makes it")
    return edge


def _shard_problems(edges: Sequence[Mapping[str, Any]], paths: Sequence[Path], layout: Layout) -> list[str]:
    """List how shard edges contradict the specification, their position, or each other."""
    problems = []
    numbers = [edge["shard"] for edge in edges]
    if numbers != list(range(layout.n_shards)):
        problems.append(f"{paths[0].parent}: shards {numbers} were recorded, 0 to {layout.n_shards - 1} are due")
    common = {key: edges[0][key] for key in COMMON}
    for edge, path in zip(edges, paths, strict=True):
        differs = first_difference(common, {key: edge[key] for key in COMMON})
        if differs is not None:
            field, ours, theirs = differs
            problems.append(f"{path}: {field} is {shown(theirs)}, but shard {numbers[0]} has {shown(ours)}")
        if not 0 <= edge["shard"] < layout.n_shards:
            continue
        first, stop = layout.shard_range(edge["shard"])
        due = {
            "name": shard_name(edge["shard"]),
            "n_examples": stop - first,
            "bytes": layout.shard_bytes,
            "layers": list(layout.layers),
        }
        problems += [f"{path}: {k} is {shown(edge[k])}, due is {shown(v)}" for k, v in due.items() if edge[k] != v]
    return problems


def _example_problems(examples: Mapping[str, Any], path: Path, layout: Layout) -> list[str]:
    """Compare the number of examples."""
    if examples.get("n_examples") == layout.n_examples:
        return []
    return [f"{path}: n_examples is {examples.get('n_examples')}, the specification says {layout.n_examples}"]


def _label_problems(
    labels: Mapping[str, Any], path: Path, examples: Mapping[str, Any], layout: Layout
) -> list[str]:  # fmt: skip
    """List how the labels contradict the recording, the examples, or themselves."""
    tokens = layout.content_tokens_per_example
    n_rows = layout.n_examples * tokens
    due = {"name": "labels.bin", "n_examples": layout.n_examples, "tokens_per_example": tokens, "bytes": n_rows}
    if examples.get("classes") is not None:
        due["classes"] = examples["classes"]
    problems = [f"{path}: {k} is {shown(labels[k])}, due is {shown(v)}" for k, v in due.items() if labels[k] != v]
    if len(labels["counts"]) != len(labels["classes"]) or sum(labels["counts"]) != n_rows:
        problems.append(
            f"{path}: {len(labels['counts'])} counts with sum {sum(labels['counts'])}, due are"
            f" {len(labels['classes'])} with sum {n_rows}"
        )
    return problems
