"""Check a configuration: fill in the schema's defaults, and say each mistake in one line.

``check(config)`` returns lines such as ``bases.kmeans-256: unknown key `n_clutsers`; did you mean `n_clusters`?``.
Objects that differ by ``kind`` are alternatives of a ``oneOf`` in the schema; the kind picks the alternative, so that a
mistake is reported against the keys of that kind and defaults come from it alone.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from consistency import contradictions
from eigenloom.bases.registry import KINDS, find_kind
from eigenloom.errors import ConfigError

SCHEMA = Path(__file__).parent / "schemas" / "config.schema.yaml"
NAMES = {"object": "a mapping", "array": "a list", "string": "text", "boolean": "true or false", "null": "null"}
NAMES |= {"integer": "a whole number", "number": "a number"}


@cache
def schema() -> dict[str, Any]:
    """Return the parsed schema."""
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def check(config: dict[str, Any]) -> list[str]:
    """Fill defaults into ``config`` in place and return one line per mistake; no line means that it is valid."""
    errors = sorted(_Validator(schema()).iter_errors(config), key=lambda error: [str(p) for p in error.absolute_path])
    lines = [line for error in errors for line in _lines(error)]
    return lines or contradictions(config)


def _with_defaults(validator: Any, properties: Any, instance: Any, node: Any) -> Iterator[ValidationError]:
    """Fill in absent keys, then validate as usual."""
    if isinstance(instance, dict):
        for key, child in properties.items():
            if "default" in child:
                instance.setdefault(key, deepcopy(child["default"]))
    yield from Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, node)


def _by_kind(validator: Any, alternatives: Any, instance: Any, node: Any) -> Iterator[ValidationError]:
    """Validate against the one alternative whose ``kind`` the instance has, or else the node's default has."""
    if not isinstance(instance, dict):
        yield ValidationError("", validator="type", validator_value="object", instance=instance)
        return
    kinds = {a["properties"]["kind"]["const"]: a for a in alternatives}
    if "default" in node:
        instance.setdefault("kind", node["default"]["kind"])
    kind = instance.get("kind")
    if kind in kinds:
        yield from validator.descend(instance, kinds[kind], schema_path=kind)
    elif kind is None:
        yield ValidationError(f"missing key `kind`; known: {', '.join(kinds)}")
    elif not (node is schema()["$defs"]["basis"] and _is_registered(kind)):
        yield ValidationError("", validator="enum", validator_value=list(kinds), instance=kind, path=["kind"])


def _is_registered(kind: Any) -> bool:
    """Say whether an installed package brings this kind of basis; its parameters are its own to check."""
    try:
        find_kind(str(kind))
    except ConfigError:
        return False
    return kind not in KINDS


_Validator: Any = extend(Draft202012Validator, {"properties": _with_defaults, "oneOf": _by_kind})


def _unknown_keys(error: ValidationError) -> Iterator[str]:
    """Name each unknown key and the nearest valid one."""
    assert isinstance(error.schema, dict)
    known = list(error.schema["properties"])
    for key in sorted(map(str, set(error.instance) - set(known))):
        yield f"unknown key `{key}`; {_nearest(key, known)}"


def _nearest(word: str, known: list[str]) -> str:
    """Suggest one of the known words, or list them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"


def _wrong_type(error: ValidationError) -> str:
    """Say which type was wanted, and what YAML does to numbers without a dot."""
    wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    text = f"{_shown(error.instance)} is not {' or '.join(NAMES[str(kind)] for kind in wanted)}"
    if "number" in wanted and isinstance(error.instance, str):
        try:
            float(error.instance)
            return f"{text}; YAML wants a dot before the exponent, as in 1.0e-8"
        except ValueError:
            pass
    return text


def _shown(value: Any) -> str:
    """Show a value as the user may have written it, cut when long."""
    text = (
        {None: "null", True: "true", False: "false"}.get(value, "") if isinstance(value, bool | None) else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


WORDS: dict[str, Callable[[ValidationError], str]] = {
    "type": _wrong_type,
    "enum": lambda e: f"{_shown(e.instance)} is not a choice; {_nearest(str(e.instance), list(map(str, _list(e))))}",
    "const": lambda e: f"{_shown(e.instance)} must be {_shown(e.validator_value)}",
    "minimum": lambda e: f"{_shown(e.instance)} is below the least value {e.validator_value}",
    "exclusiveMinimum": lambda e: f"{_shown(e.instance)} is not above {e.validator_value}",
    "maximum": lambda e: f"{_shown(e.instance)} is above the greatest value {e.validator_value}",
    "exclusiveMaximum": lambda e: f"{_shown(e.instance)} is not below {e.validator_value}",
    "minLength": lambda e: "is empty",
    "minItems": lambda e: (
        f"{_shown(e.instance)} has {len(e.instance)} entries, at least {e.validator_value} are needed"
    ),
    "maxItems": lambda e: (
        f"{_shown(e.instance)} has {len(e.instance)} entries, at most {e.validator_value} are allowed"
    ),
    "uniqueItems": lambda e: f"{_shown(e.instance)} lists an entry twice",
    "minProperties": lambda e: f"is empty, at least {e.validator_value} entry is needed",
    "maxProperties": lambda e: f"has {len(e.instance)} entries, at most {e.validator_value} are allowed",
    "dependentRequired": lambda e: "`probe_train` and `probe_val` come together or not at all",
}
PATTERNS = {
    "^[a-z0-9]+(-[a-z0-9]+)*$": "is not a name: lower-case letters, digits and single hyphens",
    "^[^/~].*$": "must be relative to the repository; link a folder elsewhere below `data/`",
    "^(last-[1-9][0-9]?|[0-9]{1,2}-[0-9]{1,2})$": "is no list of layers, no range (18-23) and no end (last-6)",
    "^auto$": "is neither a number (YAML wants a dot before an exponent) nor auto",
    "^(auto|cpu|mps|cuda(:[0-9]+)?)$": "is not a device: auto, cpu, mps, cuda or cuda:N",
}


def _list(error: ValidationError) -> list[Any]:
    """Return an enumeration's values."""
    assert isinstance(error.validator_value, list)
    return error.validator_value


def _lines(error: ValidationError) -> Iterator[str]:
    """Turn one error into lines of path and sentence."""
    path = ".".join(map(str, error.absolute_path))
    where = f"{path}: " if path else ""
    if error.validator == "additionalProperties":
        yield from (f"{where}{text}" for text in _unknown_keys(error))
    elif error.validator == "required":
        missing = [key for key in _list(error) if key not in error.instance and f"{key!r}" in error.message]
        yield from (f"{where}missing key `{key}`" for key in missing)
    elif error.validator == "pattern":
        yield f"{where}`{error.instance}` {PATTERNS[str(error.validator_value)]}"
    else:
        words = WORDS.get(str(error.validator))
        yield f"{where}{words(error) if words else error.message}"
