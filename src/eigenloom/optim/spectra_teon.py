"""SpectraTEON: one optimizer that runs spectral shaping of stacks, Spectra, TEON, Muon and AdamW, a rule per group.

Spectra: Huang et al., arXiv 2602.11185. TEON: Zhang et al., arXiv 2601.23261. Muon: Jordan et al. (2024), with the step
size of Liu et al., arXiv 2502.16982. What is ours, and why, is in ``docs/methods/spectra_teon.md``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from eigenloom.errors import ConfigError, DataError
from eigenloom.optim.adamw import adamw_state, adamw_step
from eigenloom.optim.checkpoint import check_checkpoint, exact_state
from eigenloom.optim.matrices import advance, matrix_state, update_bucket
from eigenloom.optim.router import param_groups
from eigenloom.optim.settings import DEFAULTS, LITERAL, SHAPED, completed
from eigenloom.optim.stacks import Bucket, buckets, complete_stacks
from eigenloom.optim.summary import Step, summarize


class SpectraTEON(torch.optim.Optimizer):
    """Lower the few dominant singular values of (stacked) momenta to the level of the rest, at about AdamW's price.

    Each group has an ``algorithm``: ``spectra_teon`` (stacks of neighbouring blocks), ``spectra`` (single matrices),
    ``teon`` (stacks, orthogonalized), ``muon`` (single matrices) or ``adamw``. Use ``from_model``, which decides for
    every parameter; ``summary()`` shows what it decided. Weight decay is decoupled. Learning rates are AdamW's: the
    update of every matrix has a root mean square of ``0.2 lr``.

    Keys of the constructor are defaults of the groups; a key left out takes the default of the group's rule. ``lr``,
    ``weight_decay``, ``momentum`` and ``betas`` are read from the groups at every step; those that size a basis are
    fixed once the optimizer stands.

    Args:
        params: groups from ``param_groups``, dicts with an ``algorithm`` key, or matrices, taken as ``spectra``.
            Without ``stacks`` every parameter of a group stands alone.
        lr: learning rate, a number or a tensor of one.
        literal: the published algorithms put together as they stand: ``stack_dim=1, joint_rms=True, oversample=0,
            ritz=False, rank_scope="stack", min_rank=1, damped=False``.
        **keys: ``momentum`` (0.95), ``nesterov`` (False; ``muon`` True), ``damped`` (True: ``mu M + (1 - mu) G``),
            ``weight_decay`` (0.1), ``betas`` ((0.9, 0.95)) and ``eps`` (1e-8) of ``adamw``, ``rank_ratio`` (0.015),
            ``min_rank`` (4), ``rank_scope`` (``layer``), ``oversample`` (8), ``n_iter`` (1), ``cold_iter`` (4),
            ``ritz`` (True), ``stack_dim`` (0; ``teon`` 1), ``joint_rms`` (False), ``scale`` (``rms``; ``muon``
            ``match_rms``), ``orthogonalization`` (``newton_schulz``; ``teon`` ``polar_express``),
            ``orthogonalization_steps`` (5), ``maximize`` (False), ``seed`` (0), ``algorithm`` of groups that name none.

    Raises:
        ConfigError: an unknown key or rule, a value out of range, a parameter that no rule can update, or that comes
            twice.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        literal: bool = False,
        **keys: Any,
    ):
        """Lay out the stacks and create all state."""
        self._given = {**(LITERAL if literal else {}), **keys, "lr": lr}
        if unknown := sorted(keys.keys() - DEFAULTS.keys() - {"algorithm"}):
            raise ConfigError(f"SpectraTEON: unknown argument {unknown[0]!r}; known: {', '.join(DEFAULTS)}")
        self._reset()
        super().__init__(_as_groups(params), {**DEFAULTS, **self._given})

    @classmethod
    def from_model(cls, model: nn.Module, lr: float | Tensor = 1e-3, **keys: Any) -> Self:
        """Route every trainable parameter of a model and construct; takes the keys of ``param_groups`` too.

        Raises:
            ConfigError: as the constructor and ``param_groups``.
        """
        routing = {key: keys.pop(key) for key in ROUTING if key in keys}
        return cls(param_groups(model, **routing), lr, **keys)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked like those of the constructor, with its state.

        Raises:
            ConfigError: as the constructor.
        """
        group = completed(param_group, self._given)
        params = group["params"]
        group["params"] = params = [params] if isinstance(params, Tensor) else list(params)
        _check_parameters([p[1] if isinstance(p, tuple) else p for p in params], self.param_groups)
        super().add_param_group(group)
        if group["algorithm"] == "adamw":
            self.state.update({p: adamw_state(p) for p in group["params"]})
        else:
            try:
                complete_stacks(group)
            except ConfigError:
                self.param_groups.pop()
                raise
            self.state.update(matrix_state(group))
        self._reset()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return the loss of ``closure`` if there is one.

        Raises:
            DataError: a sparse gradient, or a shaping rule inside a CUDA graph capture.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            live = [p.grad is not None for p in group["params"]]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [_dense(p.grad) for p in params]
            if group["maximize"]:
                grads = list(torch._foreach_neg(grads))
            if group["algorithm"] == "adamw":
                adamw_step(group, params, grads, self.state)
                continue
            _refuse_capture(group)
            plan = self._plan(number, live)
            sources = advance(group, params, grads, self.state)
            places = [i for i, is_live in enumerate(live) if is_live]
            numbered = dict(zip(places, sources, strict=True))
            self._steps[number] = [(bucket, update_bucket(group, bucket, numbered, self.state)) for bucket in plan]
        return loss

    def summary(self, rms: bool = False) -> str:
        """Return a table of what happens to every parameter, and of the size of the state per rule.

        Args:
            rms: also show the root mean square of the last step of each layer; reads it from the device.
        """
        return summarize(self.param_groups, self.state, self._steps if rms else None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a ``state_dict``, bit for bit: dtypes of the state are those saved, not the parameters'.

        Raises:
            MismatchError: rules, stacks, sides or shapes differ from the live ones; names the first difference.
        """
        seen: dict[str, Any] = {}

        def inspect(_optimizer: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            check_checkpoint(self.param_groups, self.state, final)
            seen.update(final)

        handle = self.register_load_state_dict_pre_hook(inspect)  # the last one: it sees what the user's hooks made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self.state.update(exact_state(self.param_groups, seen))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled, copied or loaded state; what is derived from it is derived again."""
        super().__setstate__(state)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds."""
        return {**super().__getstate__(), "_given": self._given}

    def _reset(self) -> None:
        """Forget what is derived from groups and state."""
        self._plans: dict[int, tuple[Any, list[Bucket]]] = {}
        self._steps: dict[int, Step] = {}

    def _plan(self, number: int, live: list[bool]) -> list[Bucket]:
        """Return the batches of a group; the same as at the last step unless gradients came or went."""
        group = self.param_groups[number]
        started = [bool(self.state[p]["step"] > 0) for p in group["params"]]
        key, plan = self._plans.get(number, (None, []))
        if key != (live, started):
            plan = buckets(group, live, started)
            self._plans[number] = ((live, started), plan)
        return plan


ROUTING = ("stack", "algorithm", "fused", "exclude", "roles", "adamw_lr")


def _as_groups(params: Iterable[Any]) -> list[Any]:
    """Turn a flat iterable of matrices into one group, and leave groups as they are."""
    listed = [params] if isinstance(params, Mapping) else [params] if isinstance(params, Tensor) else list(params)
    if not listed:
        raise ConfigError(
            "SpectraTEON: there are no parameters to optimize; give matrices, groups, or use from_model(model)"
        )
    return [dict(group) for group in listed] if isinstance(listed[0], Mapping) else [{"params": listed}]


def _check_parameters(params: list[Any], groups: list[dict[str, Any]]) -> None:
    """Refuse what cannot be updated here.

    Raises:
        ConfigError: a complex, sharded, or repeated parameter, or no floating-point tensor at all.
    """
    taken = {id(p) for group in groups for p in group["params"]}
    for p in params:
        kinds = {kind.__name__ for kind in type(p).__mro__}
        if not isinstance(p, Tensor) or not p.is_floating_point():
            found = f"a {p.dtype} tensor" if isinstance(p, Tensor) else f"a {type(p).__name__}"
            raise ConfigError(f"SpectraTEON: {found} was given, but parameters must be real floating-point tensors")
        if "DTensor" in kinds or hasattr(p, "_is_flat_param") or "FlatParameter" in kinds:
            raise ConfigError(
                f"SpectraTEON: a {type(p).__name__} is a shard, and the singular values of a shard are not those of its"
                " matrix; train with DistributedDataParallel"
            )
        if id(p) in taken:
            raise ConfigError(
                f"SpectraTEON: a parameter of shape {tuple(p.shape)} was given twice; give each parameter once"
            )
        taken.add(id(p))


def _dense(grad: Tensor | None) -> Tensor:
    """Refuse gradients that are no dense tensors."""
    assert grad is not None
    if grad.layout != torch.strided:
        raise DataError(
            "SpectraTEON: a gradient is sparse; use nn.Embedding(sparse=False), or torch.optim.SparseAdam for it"
        )
    return grad


def _refuse_capture(group: Mapping[str, Any]) -> None:
    """Small singular value decompositions check their error code on the host, which a graph cannot."""
    if group["algorithm"] in SHAPED and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise DataError(
            "SpectraTEON: a shaping rule cannot be captured in a CUDA graph; call step outside of the graph"
        )
