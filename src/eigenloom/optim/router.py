"""Which rule updates which parameter: by module type, by name only where types cannot tell, never by gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from eigenloom.errors import ConfigError
from eigenloom.optim.fused import Sizes, fused_sizes, fused_weight, is_column_layout
from eigenloom.optim.names import EMBEDDINGS, HEADS, ROLES
from eigenloom.optim.settings import ALGORITHMS, STACKING


@dataclass(frozen=True)
class Place:
    """A parameter where a module holds it."""

    module_name: str
    module: nn.Module
    name: str
    parameter: nn.Parameter

    @property
    def full(self) -> str:
        """Dotted name of the parameter."""
        return f"{self.module_name}.{self.name}" if self.module_name else self.name

    @property
    def last(self) -> str:
        """Last component of the module's name."""
        return self.module_name.rpartition(".")[2]


@dataclass(frozen=True)
class Route:
    """What was decided.

    Fields: ``rule``, ``matrix``, ``decay`` or ``plain``; ``reason`` in words; ``pieces``, role, first row and number of
    rows of each part that is stacked.
    """

    place: Place
    rule: str
    reason: str
    pieces: tuple[tuple[str, int, int], ...] = ()


def param_groups(
    model: nn.Module,
    stack: int = 2,
    algorithm: str = "spectra_teon",
    fused: Mapping[str, Sizes] | None = None,
    exclude: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
    adamw_lr: float | Tensor | None = None,
) -> list[dict[str, Any]]:
    """Route each trainable parameter of a model, once, into groups for ``SpectraTEON``.

    Query, key and value projections of neighbouring blocks are stacked; other linear layers and convolutions are
    matrices of their own; embeddings, norms, biases, the output head and whatever is unknown go to ``adamw``.

    Args:
        model: any module; parameters that do not require a gradient are left out.
        stack: blocks per stack.
        algorithm: rule of the matrices; the single ones of ``spectra_teon`` and ``teon`` go to ``spectra`` and
            ``muon``.
        fused: pattern of a module's or parameter's dotted name -> rows of query, key, value in its weight.
        exclude: patterns of dotted parameter names that go to ``adamw``, such as ``*.router.*``.
        roles: name of a module (its last component) -> ``q``, ``k`` or ``v``, beyond those known.
        adamw_lr: learning rate of ``adamw`` groups; None means that of the others.

    Returns:
        Groups in fixed order, empty ones left out: stacked, single, ``adamw`` with decay, ``adamw`` without.

    Raises:
        ConfigError: an unknown rule or role, a stack below 1, or a pattern that matches nothing.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"param_groups: {algorithm!r} is no algorithm; use {', '.join(ALGORITHMS)}")
    if stack < 1:
        raise ConfigError(f"param_groups: stack is {stack}, must be at least 1")
    if wrong := sorted(set((roles or {}).values()) - ROLES.keys()):
        raise ConfigError(f"param_groups: {wrong[0]!r} is no role; use q, k or v")
    known = {name: role for role, names in ROLES.items() for name in names} | dict(roles or {})
    routes = list(_routes(model, fused or {}, exclude, known))
    matrices = [route for route in routes if route.rule == "matrix"]
    rest = {rule: [route for route in routes if route.rule == rule] for rule in ("decay", "plain")}
    groups: list[dict[str, Any]] = []
    if algorithm == "adamw":
        rest["decay"] = [route for route in routes if route.rule != "plain"]
    elif algorithm in STACKING:
        groups.append(_stacked([route for route in matrices if route.pieces], algorithm, stack))
        groups.append(_stacked([route for route in matrices if not route.pieces], STACKING[algorithm], 1))
    else:
        groups.append(_stacked(matrices, algorithm, 1))
    for rule in ("decay", "plain"):
        group = {"algorithm": "adamw", **_listed(rest[rule]), **({"weight_decay": 0.0} if rule == "plain" else {})}
        groups.append(group if adamw_lr is None else {**group, "lr": adamw_lr})
    return [group for group in groups if group["params"]]


def _routes(
    model: nn.Module, fused: Mapping[str, Sizes], exclude: Sequence[str], known: Mapping[str, str]
) -> Iterator[Route]:
    """Decide on each trainable parameter, in the order of ``named_parameters``."""
    places = [
        Place(name, module, own, parameter)
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    _check_patterns(places, (*fused, *exclude))
    embedded = {id(p.parameter) for p in places if isinstance(p.module, nn.Embedding | nn.EmbeddingBag)}
    heads = _heads(model, places, embedded)
    seen: set[int] = set()
    for place in places:
        p = place.parameter
        if not p.requires_grad or id(p) in seen:
            continue
        seen.add(id(p))
        if any(fnmatchcase(place.full, pattern) for pattern in exclude):
            yield Route(place, "decay" if p.ndim >= 2 else "plain", "excluded")
        elif id(p) in embedded:
            yield Route(place, "plain", "embedding")
        elif p.ndim < 2 or "norm" in type(place.module).__name__.lower():
            yield Route(place, "plain", "norm, bias or scalar")
        elif id(p) in heads:
            yield Route(place, "decay", "output head")
        else:
            yield _matrix(place, model, fused, known)


def _matrix(place: Place, model: nn.Module, fused: Mapping[str, Sizes], known: Mapping[str, str]) -> Route:
    """Decide on a weight that may be a matrix."""
    module, p = place.module, place.parameter
    attention = isinstance(module, nn.MultiheadAttention)
    linear = isinstance(module, nn.Linear) or is_column_layout(module)
    if (linear and place.name == "weight") or attention:
        rows = p.shape[1] if is_column_layout(module) else p.shape[0]
        called = _called(place)
        if called in known:
            return Route(place, "matrix", f"{known[called]} projection", ((known[called], 0, rows),))
        if fused_weight(called) or any(_matches(place, pattern) for pattern in fused):
            given = next((sizes for pattern, sizes in fused.items() if _matches(place, pattern)), None)
            sizes, reason = fused_sizes(place.full, rows, _parent(model, place), called, given)
            return Route(place, "matrix", reason, _cut(sizes))
        if linear:
            return Route(place, "matrix", "linear")
    elif isinstance(module, nn.modules.conv._ConvNd) and place.name == "weight":
        return Route(place, "matrix", "convolution")
    bare = any(part in place.name.lower() for part in EMBEDDINGS)
    return Route(place, "plain" if bare else "decay", "embedding" if bare else f"unknown: {type(module).__name__}")


def _called(place: Place) -> str:
    """Return the word that names a projection: its parameter's in ``nn.MultiheadAttention``, else its module's."""
    return place.name if isinstance(place.module, nn.MultiheadAttention) else place.last


def _cut(sizes: Sequence[tuple[str, int]]) -> tuple[tuple[str, int, int], ...]:
    """Turn roles and numbers of rows into pieces."""
    starts = [sum(n for _, n in sizes[:i]) for i in range(len(sizes))]
    return tuple((role, start, n) for (role, n), start in zip(sizes, starts, strict=True))


def _parent(model: nn.Module, place: Place) -> nn.Module:
    """Return the module that knows how many heads a projection serves."""
    if isinstance(place.module, nn.MultiheadAttention):
        return place.module
    return model.get_submodule(place.module_name.rpartition(".")[0])


def _matches(place: Place, pattern: str) -> bool:
    return fnmatchcase(place.module_name, pattern) or fnmatchcase(place.full, pattern)


def _check_patterns(places: Sequence[Place], patterns: Iterable[str]) -> None:
    """Refuse patterns that match nothing.

    Raises:
        ConfigError: there is one.
    """
    for pattern in patterns:
        if not any(_matches(place, pattern) for place in places):
            raise ConfigError(f"param_groups: {pattern!r} matches no parameter; names look like {places[-1].full!r}")


def _heads(model: nn.Module, places: Sequence[Place], embedded: set[int]) -> set[int]:
    """Return the ids of output weights: by name, by a tie, or the last linear layer outside of every list of blocks."""
    linear = [p for p in places if isinstance(p.module, nn.Linear) and p.name == "weight"]
    named: dict[str, Place] = {}
    for place in linear:
        parts = place.module_name.split(".")
        head = next((i for i, part in enumerate(parts) if part in HEADS), None)
        if head is not None and not any(part.isdigit() for part in parts[:head]):
            named[".".join(parts[: head + 1])] = place  # of several layers below one name the last
    if named:
        return {id(place.parameter) for place in named.values()}
    if any(id(place.parameter) in embedded for place in linear):
        return set()
    outside = [p for p in linear if not _in_container(model, p.module_name)]
    return {id(outside[-1].parameter)} if outside else set()


def _in_container(model: nn.Module, name: str) -> bool:
    """Say whether a module lies in a ``ModuleList`` or ``Sequential``."""
    parts = name.split(".")
    above = (".".join(parts[:i]) for i in range(len(parts)))
    return any(isinstance(model.get_submodule(path), nn.ModuleList | nn.Sequential) for path in above)


def _listed(routes: Sequence[Route]) -> dict[str, Any]:
    """Return named parameters and reasons."""
    params = [(route.place.full, route.place.parameter) for route in routes]
    return {"params": params, "reasons": [route.reason for route in routes]}


def _stacked(routes: Sequence[Route], algorithm: str, size: int) -> dict[str, Any]:
    """Lay out the stacks of a group, numbered by place, role and block, so that fusing changes nothing."""
    blocks: dict[Any, list[tuple[int, int, tuple[int, int, int]]]] = {}
    order: dict[str, int] = {}
    for number, route in enumerate(routes):
        place, p = route.place, route.place.parameter
        flipped = is_column_layout(place.module)
        columns = p.shape[0] if flipped else p[0].numel()
        rows = p.shape[1] if flipped else p.shape[0]
        index, owner = _numbered(place)
        at = order.setdefault(owner, len(order)) if route.pieces else len(order)
        for role, first, n in route.pieces or (("", 0, rows),):
            kind = (n, columns, str(p.dtype), str(p.device), _called(place))
            key = (at, role, *kind) if route.pieces else (number,)
            blocks.setdefault(key, []).append((index, number, (number, first, n)))
    stacks = []
    for key in sorted(blocks, key=lambda key: (key[0], "qkv".find(key[1]) if len(key) > 1 else 0, key)):
        members = [piece for _, _, piece in sorted(blocks[key])]
        stacks += [members[i : i + size] for i in range(0, len(members), size)]
    flipped_numbers = [i for i, route in enumerate(routes) if is_column_layout(route.place.module)]
    return {"algorithm": algorithm, **_listed(routes), "stacks": stacks, "transposed": flipped_numbers}


def _numbered(place: Place) -> tuple[int, str]:
    """Return the block a projection belongs to and the name of its attention, the block's number taken out.

    The outermost number in the dotted name counts blocks.
    """
    attention = isinstance(place.module, nn.MultiheadAttention)
    parts = (place.module_name if attention else place.module_name.rpartition(".")[0]).split(".")
    digits = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if digits is None:
        return 0, ".".join(parts)
    return int(parts[digits]), ".".join([*parts[:digits], "*", *parts[digits + 1 :]])
