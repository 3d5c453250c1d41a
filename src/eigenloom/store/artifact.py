"""The artifact: a directory of ``meta.json`` + ``arrays.safetensors`` + ``run.json``; or one ``.safetensors`` file.

``meta.json`` is a pure function of specification and inputs and is written last, so that its presence means
complete. ``run.json`` holds what differs from run to run; nothing depends on it. Nothing is pickled.
See ``docs/format.md``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained, read_json, write_bytes, write_json
from eigenloom.store.listing import file_problems

FORMAT = "eigenloom.artifact"
VERSION = 1
HEADER_KEY = "meta"
"""Of the header of a single file: its ``meta.json``."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: its ``meta.json``, its arrays on the CPU, and its ``run.json`` (empty if absent)."""

    directory: Path
    meta: dict[str, Any]
    arrays: dict[str, Tensor]
    run: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that made the arrays."""
        return self.meta["parameters"]


def write_artifact(
    directory: str | Path,
    *,
    kind: str,
    parameters: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    run: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Publish an artifact; an older one under the same name stays valid until the new arrays are in place.

    Args:
        directory: made if missing; may hold further files.
        kind: what the arrays are (a basis kind, ``moments``, ``probe``, ...).
        parameters: JSON values that, with the arrays, make the object again.
        arrays: any shapes, dtypes of ``DTYPES``; stored contiguous on the CPU.
        spec: the canonical parameters of the job that made it.
        inputs: repository-relative path of every input edge -> sha256 hex.
        run: wall time, device, versions.
        files: further siblings already written by the caller: name -> sha256 hex.

    Returns:
        sha256 hex digest of ``meta.json``.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    directory = Path(directory)
    tensors = {name: array.detach().cpu().contiguous() for name, array in sorted(arrays.items())}
    meta_path = directory / "meta.json"
    with explained(meta_path):
        meta_path.unlink(missing_ok=True)
    sums = dict(files or {})
    sums["arrays.safetensors"] = write_bytes(directory / "arrays.safetensors", format_safetensors(tensors))
    write_json(directory / "run.json", dict(run or {}))
    found = {n: {"bytes": (directory / n).stat().st_size, "sha256": sums[n]} for n in sorted(sums)}
    return write_json(meta_path, _meta(kind, parameters, tensors, found, spec, inputs))


def write_single(
    path: str | Path,
    *,
    kind: str,
    parameters: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Publish an artifact as one safetensors file, its ``meta.json`` (of no siblings) as text in the header.

    Returns:
        sha256 hex digest of the file.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    tensors = {name: array.detach().cpu().contiguous() for name, array in sorted(arrays.items())}
    meta = _meta(kind, parameters, tensors, {}, spec, inputs)
    header = {HEADER_KEY: json.dumps(meta, ensure_ascii=False, allow_nan=False)}
    return write_bytes(path, format_safetensors(tensors, metadata=header))


def _meta(
    kind: str,
    parameters: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Any],
    spec: Any,
    inputs: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return ``meta.json``."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "parameters": dict(parameters),
        "arrays": {name: {"dtype": DTYPES[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()},
        "files": dict(files),
        "spec": spec,
        "inputs": dict(sorted((inputs or {}).items())),
    }


def read_artifact(path: str | Path, kind: str | None = None, verify: bool = False) -> Artifact:
    """Load an artifact and check it: version, kind, sizes, names, dtypes, shapes, finiteness.

    Args:
        path: the directory or its ``meta.json``.
        kind: refuse any other kind.
        verify: also compare every sha256 (reads the files twice).

    Raises:
        StoreError: anything is missing, damaged, of another version or another kind.
    """
    directory = Path(path).parent if Path(path).name == "meta.json" else Path(path)
    meta_path = directory / "meta.json"
    meta = read_json(meta_path)
    _check_header(meta_path, meta, kind)
    problems = file_problems(directory, meta["files"], verify)
    if problems:
        raise StoreError("; ".join(problems) + "; delete them and run the rule that makes them, or `dvc checkout`")
    arrays_path = directory / "arrays.safetensors"
    try:
        arrays = parse_safetensors(arrays_path.read_bytes())
    except Exception as error:  # safetensors raises its own type, not an OSError
        raise StoreError(f"{arrays_path}: is not a safetensors file ({error})") from None
    _check_arrays(arrays_path, arrays, meta, meta_path)
    run_path = directory / "run.json"
    return Artifact(directory, meta, arrays, read_json(run_path) if run_path.exists() else {})


def read_single(path: str | Path, kind: str | None = None) -> Artifact:
    """Load and check an artifact that ``write_single`` wrote.

    Raises:
        StoreError: the file is missing, damaged, of another version or kind, or holds tensors alone.
    """
    path = Path(path)
    with explained(path):
        path.stat()
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
        meta: Any = None if text is None else json.loads(text)
    except Exception as error:  # safetensors raises its own type
        raise StoreError(f"{path}: is damaged or not a safetensors file ({error}); write it again") from None
    _check_header(path, meta, kind)
    _check_arrays(path, arrays, meta, path)
    return Artifact(path, meta, arrays, {})


def _check_arrays(arrays_path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any], meta_path: Path) -> None:
    """Refuse arrays that are not those of the ``meta.json``, or not finite."""
    found = {name: {"dtype": DTYPES.get(t.dtype), "shape": list(t.shape)} for name, t in sorted(arrays.items())}
    if found != meta["arrays"]:
        raise StoreError(f"{arrays_path}: holds {found}, but {meta_path} promises {meta['arrays']}")
    for name, tensor in arrays.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{arrays_path}: {name} holds NaN or Inf; delete the artifact and run its rule again")


def _check_header(path: Path, meta: Any, kind: str | None) -> None:
    """Refuse a foreign document before anything in it is believed."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise StoreError(f"{path}: is not an eigenloom artifact (format {FORMAT!r} expected)")
    if meta.get("version") != VERSION:
        raise StoreError(f"{path}: artifact version {meta.get('version')!r}; this eigenloom reads version {VERSION}")
    missing = {"kind", "parameters", "arrays", "files", "spec", "inputs"} - meta.keys()
    if missing:
        raise StoreError(f"{path}: lacks {sorted(missing)}")
    if kind is not None and meta["kind"] != kind:
        raise StoreError(f"{path}: is a {meta['kind']!r}, where a {kind!r} is needed")
