"""Attention that starts from kernel principal components: features, start, temperature, masks, precision, state."""

import math

import pytest
import torch
from torch import nn

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.pca import PCA
from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.nn import warm_features
from eigenloom.nn.warm_attention import KPCAWarmSelfAttention, WarmSelfAttention
from eigenloom.nn.warm_features import FourierFeatures, KernelFeatures, LinearFeatures, OwnFeatures
from eigenloom.sources.arrays import ArrayRows

WIDTH, HEADS, R = 12, 3, 8


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows(n=300):
    """Rows whose directions differ in variance, around a mean."""
    return draw(n, WIDTH) * torch.linspace(2, 0.2, WIDTH) + 3


@pytest.fixture(scope="module")
def state():
    return KernelPCA.fit(ArrayRows(rows()), seed=0, n_components=R, n_landmarks=64)


@pytest.fixture(scope="module")
def state64():
    return KernelPCA.fit(ArrayRows(rows()), seed=0, n_components=R, n_landmarks=64, kernel_dtype="float64")


def tokens(b=4, length=7, seed=1):
    return draw(b, length, WIDTH, seed=seed) * torch.linspace(2, 0.2, WIDTH) + 3


@torch.no_grad()
def naive(module, x, source=None, attn_mask=None, key_padding_mask=None):
    """Every query by itself, from the definition, in float64."""
    source = x if source is None else source
    features = module.features(source).double()
    b, length, dim = x.shape
    heads, size = module.num_heads, module.qk_dim
    out = torch.zeros(b, length, dim, dtype=torch.float64)

    def linear(layer, values):
        bias = 0 if layer.bias is None else layer.bias.double()
        return values @ layer.weight.double().T + bias

    query, key, value = (
        linear(module.q_adapter, features),
        linear(module.k_adapter, features),
        linear(module.v, x.double()),
    )
    for i in range(b):
        for h in range(heads):
            for q in range(length):
                scores = []
                for k in range(length):
                    pair = query[i, q, h * size : (h + 1) * size] @ key[i, k, h * size : (h + 1) * size]
                    score = float(module.temperature[h].double().exp() * pair / math.sqrt(size))
                    if attn_mask is not None:
                        shaped = (
                            attn_mask
                            if attn_mask.ndim == 2
                            else attn_mask[i]
                            if attn_mask.ndim == 3
                            else attn_mask[i, h]
                        )
                        entry = shaped[q, k]
                        score = (
                            (score if entry else -math.inf) if attn_mask.dtype == torch.bool else score + float(entry)
                        )
                    if key_padding_mask is not None and key_padding_mask[i, k]:
                        score = -math.inf
                    scores.append(score)
                if max(scores) == -math.inf:
                    continue
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                width = dim // heads
                out[i, q, h * width : (h + 1) * width] = weights @ value[i, :, h * width : (h + 1) * width]
    return linear(module.proj, out)


# --- features


@pytest.mark.parametrize(
    "parameters",
    [{}, {"kernel": "poly", "degree": 2, "kernel_dtype": "float64"}, {"kernel": "linear"}, {"whiten": True}],
)
def test_features_are_the_codes_of_the_basis(parameters):
    basis = KernelPCA.fit(ArrayRows(rows()), seed=0, n_components=R, n_landmarks=64, **parameters)
    features, x = KernelFeatures.of(basis), tokens()
    codes = basis.encode(x.reshape(-1, WIDTH)).reshape(4, 7, -1)
    assert (features.encoded(x) - codes).abs().max() <= 1e-6 * codes.abs().max().clamp_min(1)
    variance = features(rows()).double().var(0)
    assert variance == pytest.approx(torch.ones(R).double(), abs=0.02)


def test_a_standardized_basis_is_applied_in_its_own_space():
    moments = moments_of_rows(ArrayRows(rows()))
    standardization = Standardization.from_moments(moments)
    basis = KernelPCA.fit(
        StandardizedRows(ArrayRows(rows()), standardization, moments), seed=0, n_components=R, n_landmarks=64
    )
    x = tokens().reshape(-1, WIDTH)
    torch.testing.assert_close(
        KernelFeatures.of(basis).encoded(x), basis.encode(standardization.apply(x)), atol=2e-6, rtol=0
    )


def test_pieces_change_nothing(state, monkeypatch):
    whole = KernelFeatures.of(state)(tokens())
    monkeypatch.setattr(warm_features, "BUDGET", 64 * 5)
    torch.testing.assert_close(KernelFeatures.of(state)(tokens()), whole, atol=1e-6, rtol=1e-5)


def test_one_token_does_not_depend_on_the_others(state):
    features, x = KernelFeatures.of(state), tokens()
    torch.testing.assert_close(features(x[2:3, 4:5])[0, 0], features(x)[2, 4], atol=1e-6, rtol=1e-6)


def test_an_output_does_not_depend_on_the_rest_of_the_batch(state):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state), tokens()
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), atol=1e-6, rtol=1e-5)


def test_other_features_are_white_on_what_they_were_made_of():
    x = rows()
    basis = PCA.fit(ArrayRows(x), seed=0, n_components=R)
    linear = LinearFeatures.of(basis, basis.encode(x).double().var(0))
    fourier = FourierFeatures.draw(x, 0.05, R, seed=0)
    for features in (linear, fourier):
        assert features(x).double().var(0) == pytest.approx(torch.ones(R).double(), abs=1e-3)
        assert features(x).mean(0).abs().max() < 1e-3


def test_fourier_features_approach_their_kernel():
    x = rows(40)
    features = FourierFeatures.draw(x, 0.05, 20000, seed=0)
    cosines = features(x) / features.scale + features.offset
    kernel = torch.exp(-0.05 * torch.cdist(x, x) ** 2)
    assert (2 * cosines @ cosines.T / 20000 - kernel).abs().max() < 0.05


def test_a_linear_kernel_is_linear_pca():
    """Both arms of the experiment, on the same rows, begin with the same attention."""
    basis = KernelPCA.fit(
        ArrayRows(rows()), seed=0, n_components=R, n_landmarks=300, kernel="linear", kernel_dtype="float64"
    )
    pca = PCA.fit(ArrayRows(rows()), seed=0, n_components=R)
    linear = WarmSelfAttention(WIDTH, HEADS, LinearFeatures.of(pca, pca.encode(rows()).double().var(0)))
    kernel = KPCAWarmSelfAttention(WIDTH, HEADS, basis)
    torch.testing.assert_close(kernel.logits(tokens()), linear.logits(tokens()), atol=2e-4, rtol=1e-3)


# --- the start


def test_every_head_has_a_leading_component_and_no_two_are_alike(state):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state)
    chosen = module.q_adapter.weight.argmax(1).reshape(HEADS, -1)
    assert chosen[:, 0].tolist() == [0, 1, 2]
    assert chosen.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 0]]
    assert torch.equal(module.q_adapter.weight, module.k_adapter.weight)
    assert set(chosen.flatten().tolist()) == set(range(R))
    assert (state.explained_variance[:-1] >= state.explained_variance[1:]).all()
    logits = module.logits(tokens())
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("target", [0.1, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_calibration_reaches_the_target(state, target, learned):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state, target_logit_std=target, learn_temperature=learned)
    module.calibrate(tokens(16, 9))
    deviations = module.logits(tokens(16, 9)).transpose(0, 1).flatten(1).std(1)
    assert deviations == pytest.approx(torch.full((HEADS,), target), rel=1e-4)
    fresh = module.logits(tokens(200, 9, seed=5)).transpose(0, 1).flatten(1).std(1)
    assert fresh == pytest.approx(torch.full((HEADS,), target), rel=0.3)
    assert isinstance(module.temperature, nn.Parameter) == learned


def test_uncalibrated_logits_are_about_right_for_white_features(state):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state)
    spread = module.logits(rows()[None]).transpose(0, 1).flatten(1).std(1)
    assert spread == pytest.approx(torch.full((HEADS,), 0.1), rel=0.25)


def test_a_small_deviation_is_nearly_mean_pooling(state):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state, target_logit_std=0.01)
    module.calibrate(tokens())
    _, weights = module(tokens(), need_weights=True)
    assert (weights - 1 / 7).abs().max() < 0.02


def test_tokens_that_are_all_alike_cannot_calibrate(state):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state)
    with pytest.raises(DataError, match="do not vary"):
        module.calibrate(torch.ones(2, 5, WIDTH))


# --- masks


def masks():
    lower = torch.ones(7, 7).tril().bool()
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[1, 5:] = padding[3] = True
    none = lower.clone()
    none[2] = False
    added = draw(4, HEADS, 7, 7, seed=3)
    added[0, 1, 2, :] = -torch.inf
    return {
        "none": {},
        "causal": {"attn_mask": lower},
        "a row that sees nothing": {"attn_mask": none},
        "by example": {"attn_mask": lower.expand(4, 7, 7).clone().index_fill(0, torch.tensor([1]), True)},
        "by head": {"attn_mask": draw(4, HEADS, 7, 7, seed=2) > 0},
        "added": {"attn_mask": added},
        "padding": {"key_padding_mask": padding},
        "causal and padding": {"attn_mask": lower, "key_padding_mask": padding},
        "added and padding": {"attn_mask": added, "key_padding_mask": padding},
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("bias", [False, True])
def test_masks_against_every_query_by_itself(state, name, bias):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state, bias=bias, target_logit_std=1.0)
    for place, parameter in enumerate(module.parameters()):
        parameter.data += 0.1 * draw(*parameter.shape, seed=place)
    x, given = tokens(), masks()[name]
    wanted = naive(module, x, **given).float()
    torch.testing.assert_close(module(x, **given), wanted, atol=2e-5, rtol=1e-4)
    out, weights = module(x, **given, need_weights=True)
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=1e-4)
    sums = weights.sum(-1)
    assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()


def test_gradients_are_finite_where_a_row_sees_nothing(state):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state), tokens().requires_grad_()
    padding = torch.ones(4, 7, dtype=torch.bool)
    module(x, key_padding_mask=padding).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"attn_mask": torch.ones(3, 3).bool()}, "attn_mask has the shape"),
        ({"attn_mask": torch.ones(7, 7).int()}, "attn_mask holds torch.int32"),
        ({"key_padding_mask": torch.zeros(4, 7)}, "key_padding_mask is"),
        ({"source": torch.zeros(4, 6, WIDTH)}, "must be"),
    ],
)
def test_shapes_that_do_not_fit(state, wrong, words):
    with pytest.raises(DataError, match=words):
        KPCAWarmSelfAttention(WIDTH, HEADS, state)(tokens(), **wrong)


def test_a_source_of_another_width(state):
    module = KPCAWarmSelfAttention(30, HEADS, state)
    x = draw(4, 7, 30)
    assert module(x, source=tokens()).shape == (4, 7, 30)
    with pytest.raises(
        MismatchError, match=r"rows of width 12, but the attention is fed width 30.*patches.*tokens.*source"
    ):
        module(x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((13, 3), "dim 13 must be a positive multiple of num_heads, 3"),
        ((18, 9), "8 features cannot give each of 9 heads"),
        ((12, 3, 0), "qk_dim 0"),
    ],
)
def test_sizes_that_do_not_fit(state, arguments, words):
    dim, heads, *rest = arguments
    with pytest.raises(ConfigError, match=words):
        KPCAWarmSelfAttention(dim, heads, state, *rest)


@pytest.mark.parametrize("wrong", [{"target_logit_std": 0.0}, {"attn_drop": 1.0}, {"proj_drop": -0.1}])
def test_numbers_out_of_range(state, wrong):
    with pytest.raises(ConfigError):
        KPCAWarmSelfAttention(WIDTH, HEADS, state, **wrong)


def test_dropout_acts_in_training_alone(state):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state, attn_drop=0.5, proj_drop=0.5), tokens()
    torch.manual_seed(0)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


# --- gradients, precision, compilation


@pytest.mark.parametrize("through", [False, True])
def test_gradients_in_float64(state64, through):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state64, grad_through_kernel=through, learn_temperature=True).double()
    x = tokens(2, 3).double().requires_grad_()
    source = (tokens(2, 3, seed=4).double()).requires_grad_(through)
    parameters = tuple(module.parameters())

    def run(x, source, *_):
        return module(x, source)

    assert torch.autograd.gradcheck(run, (x, source, *parameters), fast_mode=False)


def test_no_gradient_flows_through_the_kernel_unless_asked(state):
    for through in (False, True):
        module = KPCAWarmSelfAttention(WIDTH, HEADS, state, grad_through_kernel=through)
        source = tokens(seed=3).requires_grad_()
        module(tokens(), source).square().sum().backward()
        assert (source.grad is not None) == through


def test_autocast_leaves_features_alone(state):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state), tokens()
    wanted = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.features(x), KernelFeatures.of(state)(x))
        out = module(x)
        assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, atol=0.05, rtol=0.05)


def test_a_cast_leaves_the_kernel_alone(state):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state), tokens()
    features = module.features(x)
    cast = module.bfloat16()
    assert cast.q_adapter.weight.dtype == torch.bfloat16
    assert cast.features.landmarks.dtype == torch.float32
    assert torch.equal(cast.features(x), features)
    assert cast(x.bfloat16(), source=x).dtype == torch.bfloat16


def test_buffers_move_with_the_module(state):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state).to("meta")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


@pytest.mark.parametrize("through", [False, True])
def test_compiled_as_one_graph(state, through):
    module, x = KPCAWarmSelfAttention(WIDTH, HEADS, state, grad_through_kernel=through), tokens()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[2, 3:] = True
    torch.testing.assert_close(compiled(x, key_padding_mask=padding), module(x, key_padding_mask=padding))
    compiled(x).square().sum().backward()
    compiled_grad = module.v.weight.grad.clone()
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(compiled_grad, module.v.weight.grad)


# --- state


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "learn_temperature": True, "qk_dim": 5, "grad_through_kernel": True}, {"attn_drop": 0.2}],
)
def test_state_makes_the_module_again_bit_for_bit(state, options, tmp_path):
    module = KPCAWarmSelfAttention(WIDTH, HEADS, state, target_logit_std=0.3, **options)
    for place, parameter in enumerate(module.parameters()):
        parameter.data += draw(*parameter.shape, seed=place)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = KPCAWarmSelfAttention.from_state_dict(saved)
    assert list(again.state_dict()) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for name in ("num_heads", "qk_dim", "target_logit_std", "learn_temperature", "attn_drop"):
        assert getattr(again, name) == getattr(module, name)
    assert again.features.differentiable == module.features.differentiable
    assert torch.equal(again.eval()(tokens()), module.eval()(tokens()))


def test_a_foreign_state_is_refused():
    with pytest.raises(StoreError, match=r"lacks features.standard_mean"):
        KPCAWarmSelfAttention.from_state_dict(nn.Linear(3, 3).state_dict())


def test_parameters_are_as_many_whatever_the_features(state):
    basis = PCA.fit(ArrayRows(rows()), seed=0, n_components=R)
    maps = [
        KernelFeatures.of(state),
        LinearFeatures.of(basis, torch.ones(R)),
        FourierFeatures.draw(rows(), 0.1, R, 0),
    ]
    counts = {sum(p.numel() for p in WarmSelfAttention(WIDTH, HEADS, features).parameters()) for features in maps}
    assert len(counts) == 1
    own = WarmSelfAttention(WIDTH, HEADS, OwnFeatures(WIDTH))
    assert own.features(tokens()) is not None
