"""The arms of the warm-start experiment: equal in everything but where queries and keys come from and start."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.pca import PCA
from eigenloom.batches import generator
from eigenloom.errors import ConfigError, DataError
from eigenloom.nn.spectrum_vit import SpectrumShape, SpectrumViT
from eigenloom.nn.warm_attention import KPCAWarmSelfAttention, WarmSelfAttention
from eigenloom.nn.warm_features import FourierFeatures, LinearFeatures, OwnFeatures
from eigenloom.sources.arrays import ArrayRows

COLD, SMALL, LINEAR, RANDOM, WARM, SHARP = "cold", "small", "linear-pca", "random-features", "kpca-warm", "kpca-sharp"
ARMS = (COLD, SMALL, LINEAR, RANDOM, WARM)
FULL_ARMS = (*ARMS, SHARP)
SHARP_STD = 1.0


@dataclass(frozen=True)
class Ingredients:
    """What all arms of one condition and seed are made of.

    Fields: ``shape`` of the network; ``basis``, kernel PCA of raw patches; ``patches [n, patch]``, those it was fitted
    to; ``batch [b, m]``, spectra that logits are calibrated on; ``target_logit_std``; ``seed``.
    """

    shape: SpectrumShape
    basis: KernelPCA
    patches: Tensor
    batch: Tensor
    target_logit_std: float
    seed: int


def build_arm(arm: str, made_of: Ingredients) -> SpectrumViT:
    """Build the network of an arm, calibrated.

    Raises:
        ConfigError: an unknown arm, or a basis with another number of components than the width of the network, so
            that arms would differ in their parameters.
    """
    if arm not in BUILDERS:
        raise ConfigError(f"arm: {arm!r} is unknown; use one of {', '.join(BUILDERS)}")
    shape, r = made_of.shape, made_of.basis.n_elements
    if r != shape.dim:
        raise ConfigError(
            f"the kernel PCA of patches has {r} components and the network a width of {shape.dim}; arms have equally "
            "many parameters only where these agree; raise n_landmarks or patches_per_spectrum, or lower dim"
        )
    model = SpectrumViT(shape, BUILDERS[arm](made_of), arm in (COLD, SMALL), made_of.seed)
    attention, patches = model.first.attention, model.patches(made_of.batch)
    with torch.no_grad():
        source = model.first.source(model.tokens(patches), patches)
    if arm in (COLD, SMALL):
        draw_adapters(attention, generator(made_of.seed, "adapters"))
        attention.temperature.zero_()
    if arm == SMALL:
        shrink_adapters(attention, source)
    elif arm != COLD:
        attention.calibrate(source)
    return model


def freezes(arm: str) -> bool:
    """Say whether an arm's queries and keys are held at first."""
    return arm != COLD


def draw_adapters(attention: WarmSelfAttention, source: torch.Generator) -> None:
    """Draw adapters as ``nn.Linear`` does by default: even within ``1/sqrt(fan_in)``."""
    for adapter in (attention.q_adapter, attention.k_adapter):
        bound = adapter.in_features**-0.5
        with torch.no_grad():
            adapter.weight.uniform_(-bound, bound, generator=source)


@torch.no_grad()
def shrink_adapters(attention: WarmSelfAttention, source: Tensor) -> None:
    """Scale each head's adapters alike, so that its logits on ``source`` have the target's deviation."""
    deviations = attention.logits(source).double().transpose(0, 1).flatten(1).std(1)
    if not (deviations > 0).all():
        raise DataError("the logits of a head do not vary over the first batch of spectra")
    factors = (attention.target_logit_std / deviations).sqrt().float()
    for adapter in (attention.q_adapter, attention.k_adapter):
        adapter.weight *= factors.repeat_interleave(attention.qk_dim)[:, None]


def entropy_and_deviation(model: SpectrumViT, batch: Tensor) -> tuple[float, float]:
    """Return the entropy of the first block's attention, 1 where it is uniform, and the deviation of its logits."""
    patches = model.patches(batch)
    with torch.no_grad():
        logits = model.first.attention.logits(model.first.source(model.tokens(patches), patches))
    shares = logits.double().softmax(-1)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum(-1).mean() / torch.tensor(float(logits.shape[-1])).log()
    return float(entropy), float(logits.double().transpose(0, 1).flatten(1).std(1).mean())


def n_trainable(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _own(made_of: Ingredients) -> WarmSelfAttention:
    """Queries and keys of the block's input."""
    return _attention(made_of, OwnFeatures(made_of.shape.dim))


def _linear(made_of: Ingredients) -> WarmSelfAttention:
    """Whitened principal components of raw patches."""
    basis = PCA.fit(ArrayRows(made_of.patches), seed=0, n_components=made_of.shape.dim)
    return _attention(made_of, LinearFeatures.of(basis, basis.encode(made_of.patches).double().var(0)))


def _random(made_of: Ingredients) -> WarmSelfAttention:
    """Random Fourier features of the same kernel."""
    features = FourierFeatures.draw(made_of.patches, made_of.basis.gamma, made_of.shape.dim, made_of.seed)
    return _attention(made_of, features)


def _attention(made_of: Ingredients, features: OwnFeatures | LinearFeatures | FourierFeatures) -> WarmSelfAttention:
    """Make the attention of a control."""
    shape = made_of.shape
    return WarmSelfAttention(shape.dim, shape.heads, features, target_logit_std=made_of.target_logit_std)


def _kernel(made_of: Ingredients, target: float) -> WarmSelfAttention:
    """Whitened kernel principal components of raw patches."""
    return KPCAWarmSelfAttention(made_of.shape.dim, made_of.shape.heads, made_of.basis, target_logit_std=target)


BUILDERS: dict[str, Callable[[Ingredients], WarmSelfAttention]] = {
    COLD: _own,
    SMALL: _own,
    LINEAR: _linear,
    RANDOM: _random,
    WARM: lambda made_of: _kernel(made_of, made_of.target_logit_std),
    SHARP: lambda made_of: _kernel(made_of, SHARP_STD),
}
