"""Self-attention whose queries and keys are small trainable adapters over fixed features of the tokens.

``KPCAWarmSelfAttention`` takes the features of a kernel PCA; ``WarmSelfAttention`` takes any feature map, so that
controls differ in nothing but their features.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.nn.attention_masks import merged_mask
from eigenloom.nn.warm_features import FeatureMap, KernelFeatures, check_width


class WarmSelfAttention(nn.Module):
    """Multi-head self-attention, ``[B, L, dim] -> [B, L, dim]``; logits are ``exp(t_h) q.k / sqrt(qk_dim)``.

    Head h starts on features h, h + H, h + 2H, ..., so that with descending features every head has a leading one and
    no two are alike. ``temperature [H]`` is t; uncalibrated it makes the logits' standard deviation
    ``target_logit_std`` if features are white.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        features: FeatureMap,
        qk_dim: int | None = None,
        bias: bool = False,
        *,
        target_logit_std: float = 0.1,
        learn_temperature: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        """Build adapters that select features, and ordinary values and output.

        Args:
            dim: width of a token.
            num_heads: divides ``dim``; no more than there are features.
            features: of ``source``, which is ``x`` unless another is given.
            qk_dim: entries of a query or key per head; None for ``ceil(features / num_heads)``.
            bias: of all four projections.
            target_logit_std: standard deviation of the logits that ``calibrate`` sets.
            learn_temperature: whether t is a parameter; else a buffer.
            attn_drop: dropout of attention weights.
            proj_drop: dropout of the output.

        Raises:
            ConfigError: sizes that do not fit together, or numbers out of range.
        """
        super().__init__()
        r = features.n_features
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ConfigError(f"dim {dim} must be a positive multiple of num_heads, {num_heads}")
        if r < num_heads:
            raise ConfigError(f"{r} features cannot give each of {num_heads} heads a leading one; fit more components")
        qk_dim = -(-r // num_heads) if qk_dim is None else qk_dim
        if qk_dim < 1 or not (math.isfinite(target_logit_std) and target_logit_std > 0):
            raise ConfigError(f"qk_dim {qk_dim} and target_logit_std {target_logit_std} must be above 0")
        if not (0 <= attn_drop < 1 and 0 <= proj_drop < 1):
            raise ConfigError(f"attn_drop {attn_drop} and proj_drop {proj_drop} must be at least 0 and below 1")
        self.dim, self.num_heads, self.qk_dim = dim, num_heads, qk_dim
        self.target_logit_std, self.learn_temperature = target_logit_std, learn_temperature
        self.attn_drop = attn_drop
        self.features = features
        self.q_adapter = nn.Linear(r, num_heads * qk_dim, bias)
        self.k_adapter = nn.Linear(r, num_heads * qk_dim, bias)
        self.v = nn.Linear(dim, dim, bias)
        self.proj = nn.Linear(dim, dim, bias)
        self.proj_drop = nn.Dropout(proj_drop)
        start = torch.full((num_heads,), math.log(target_logit_std))
        if learn_temperature:
            self.temperature = nn.Parameter(start)
        else:
            self.register_buffer("temperature", start)
        self.select_features()

    @torch.no_grad()
    def select_features(self) -> None:
        """Set both adapters to the selection of features; a head that is longer than its share takes it again."""
        h, j = torch.meshgrid(torch.arange(self.num_heads), torch.arange(self.qk_dim), indexing="ij")
        chosen = (h + j * self.num_heads).flatten() % self.features.n_features
        for adapter in (self.q_adapter, self.k_adapter):
            adapter.weight.zero_()
            adapter.weight[torch.arange(len(chosen)), chosen] = 1.0
            if adapter.bias is not None:
                adapter.bias.zero_()

    def set_qk_requires_grad(self, flag: bool) -> None:
        """Let both adapters, and the temperature where it is learned, be trained or not."""
        for parameter in self.qk_parameters():
            parameter.requires_grad_(flag)

    def qk_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that queries and keys are made with."""
        found = [*self.q_adapter.parameters(), *self.k_adapter.parameters()]
        return [*found, self.temperature] if isinstance(self.temperature, nn.Parameter) else found

    @torch.no_grad()
    def calibrate(self, source: Tensor) -> Tensor:
        """Set each head's temperature so that its logits on ``source [B, L, width]`` have the target's deviation.

        Returns:
            The deviations ``[H]`` before, at temperature 1.

        Raises:
            DataError: a head whose logits are all alike.
        """
        query, key = self._queries_and_keys(source)
        logits = (query.float() @ key.float().transpose(-2, -1)) / math.sqrt(self.qk_dim)
        deviations = logits.double().transpose(0, 1).flatten(1).std(1)
        if not (torch.isfinite(deviations).all() and (deviations > 0).all()):
            raise DataError("calibrate: the logits of a head do not vary over this batch; give more or other tokens")
        self.temperature.copy_((self.target_logit_std / deviations).log())
        return deviations

    @torch.no_grad()
    def logits(self, source: Tensor) -> Tensor:
        """Return the logits ``[B, H, L, L]`` float32, before any mask."""
        query, key = self._queries_and_keys(source)
        heat = self.temperature.float().exp()[:, None, None]
        return heat * (query.float() @ key.float().transpose(-2, -1)) / math.sqrt(self.qk_dim)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Any:
        """Mix tokens.

        Args:
            x: ``[B, L, dim]``.
            source: ``[B, L, width]`` that features are taken of; ``x`` by default.
            attn_mask: ``[L, L]``, ``[B, L, L]`` or ``[B, H, L, L]``: boolean, true where a query may look, or added to
                the logits. A query that may look nowhere gets zeros.
            key_padding_mask: boolean ``[B, L]``, true at tokens that nobody may look at.
            need_weights: return the weights ``[B, H, L, L]``, too.

        Returns:
            ``[B, L, dim]``, or that and the weights.

        Raises:
            MismatchError: the features are not of tokens of this width.
            DataError: shapes that do not fit each other.
        """
        source = x if source is None else source
        if x.ndim != 3 or x.shape[2] != self.dim or source.shape[:2] != x.shape[:2]:
            raise DataError(
                f"x {tuple(x.shape)} and source {tuple(source.shape)} must be [B, L, {self.dim}] and [B, L, width]"
            )
        query, key = self._queries_and_keys(source)
        value = self._heads(self.v(x))
        query = query * self.temperature.to(query.dtype).exp()[:, None, None]
        key, query = key.to(value.dtype), query.to(value.dtype)
        mask, alive = merged_mask(x, self.num_heads, attn_mask, key_padding_mask)
        mask = mask.to(query.dtype) if mask is not None and mask.is_floating_point() else mask
        drop = self.attn_drop if self.training else 0.0
        weights = None
        if need_weights:
            logits = query @ key.transpose(-2, -1) / math.sqrt(self.qk_dim)
            if mask is not None:
                logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, -torch.inf)
            weights = logits.softmax(-1)
            mixed = functional.dropout(weights, drop) @ value
            weights = weights if alive is None else weights * alive
        else:
            scale = 1 / math.sqrt(self.qk_dim)
            mixed = functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=drop, scale=scale)
        if alive is not None:
            mixed = mixed * alive
        out = self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(x.shape)))
        return (out, weights) if need_weights else out

    def _queries_and_keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B, H, L, qk_dim]`` of each."""
        check_width(self.features, source.shape[-1])
        found = self.features(source).to(self.q_adapter.weight.dtype)
        return self._heads(self.q_adapter(found)), self._heads(self.k_adapter(found))

    def _heads(self, tokens: Tensor) -> Tensor:
        """Cut ``[B, L, H c]`` into ``[B, H, L, c]``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class KPCAWarmSelfAttention(WarmSelfAttention):
    """Self-attention that starts from the kernel principal components of its tokens.

    Everything of the basis becomes buffers, so that ``state_dict`` holds all that ``from_state_dict`` needs.
    """

    settings: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kpca_state: KernelPCA | KernelFeatures,
        qk_dim: int | None = None,
        bias: bool = False,
        *,
        target_logit_std: float = 0.1,
        learn_temperature: bool = False,
        grad_through_kernel: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        """Take a fitted basis (``KernelPCA.load(path)``); the other arguments are those of ``WarmSelfAttention``.

        ``grad_through_kernel`` differentiates the kernel in its tokens; otherwise features are constants.
        """
        if isinstance(kpca_state, KernelFeatures):
            features = kpca_state
            features.differentiable = grad_through_kernel
        else:
            features = KernelFeatures.of(kpca_state, grad_through_kernel)
        super().__init__(
            dim, num_heads, features, qk_dim, bias, target_logit_std=target_logit_std,
            learn_temperature=learn_temperature, attn_drop=attn_drop, proj_drop=proj_drop,
        )  # fmt: skip
        numbers = [num_heads, target_logit_std, learn_temperature, grad_through_kernel, attn_drop, proj_drop]
        features.register_buffer("settings", torch.tensor([float(n) for n in numbers], dtype=torch.float64))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a module from its ``state_dict`` alone.

        Raises:
            StoreError: the state is not one of this class.
        """
        own = [f"features.{name}" for name in (*KernelFeatures.SHAPED, "settings")]
        if missing := [name for name in (*own, "q_adapter.weight", "v.weight") if name not in state]:
            raise StoreError(f"this is no state of a {cls.__name__}: it lacks {', '.join(missing)}")
        heads, target, learned, through, attn_drop, proj_drop = state["features.settings"].tolist()
        features = KernelFeatures({name: state[f"features.{name}"] for name in KernelFeatures.SHAPED})
        weight, value = state["q_adapter.weight"], state["v.weight"]
        module = cls(
            value.shape[0], int(heads), features, weight.shape[0] // int(heads), "v.bias" in state,
            target_logit_std=target, learn_temperature=bool(learned), grad_through_kernel=bool(through),
            attn_drop=attn_drop, proj_drop=proj_drop,
        ).to(value.device, value.dtype)  # fmt: skip
        module.load_state_dict(dict(state))
        return module
