"""One step of each rule, against full SVD, torch's own optimizers, and the published algorithm written out again."""

import pytest
import torch
from planted_spectra import relative
from torch import nn

from eigenloom import SpectraTEON, orthogonalize
from eigenloom.errors import ConfigError
from eigenloom.optim import matrices
from eigenloom.optim.shape import spectra_shape_reference, start_basis


def parameters(n, m, count, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(n, m, generator=draw, dtype=dtype)) for _ in range(count)]


def give(params, seed, sizes=None):
    """Set gradients of the given root mean squares."""
    draw = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=draw, dtype=torch.float64)
        p.grad = (grad * (sizes[i] if sizes else 1.0)).to(p.dtype)


def stacked(params, algorithm="spectra_teon", **keys):
    whole = [[(i, 0, p.shape[0]) for i, p in enumerate(params)]]
    return SpectraTEON([{"params": params, "algorithm": algorithm, "stacks": whole}], **keys)


def moves(optimizer, params):
    before = [p.detach().clone() for p in params]
    optimizer.step()
    return [p.detach() - b for p, b in zip(params, before, strict=True)]


def unit(matrix):
    return matrix / matrix.square().mean().sqrt()


@pytest.mark.parametrize("stack_dim", [0, 1])
def test_a_stack_is_shaped_as_full_svd_shapes_it(stack_dim):
    params = parameters(20, 12, 3)
    optimizer = stacked(params, stack_dim=stack_dim, lr=0.1, weight_decay=0.0, rank_ratio=0.1, min_rank=2, cold_iter=60)
    give(params, 1, [1.0, 10.0, 0.1])
    steps = moves(optimizer, params)
    # Mode-2 shares columns and keeps one rank for the stack; mode-1 shares rows and keeps a rank per layer.
    z = torch.cat([unit(p.grad) for p in params], dim=stack_dim)
    wanted = spectra_shape_reference(z, 2 if stack_dim == 0 else 6).matrix.chunk(3, dim=stack_dim)
    for step, shaped in zip(steps, wanted, strict=True):
        assert relative(step, -0.2 * 0.1 * unit(shaped)) < 1e-6


@pytest.mark.parametrize("algorithm", ["spectra_teon", "teon"])
@pytest.mark.parametrize("sizes", [(1.0, 10.0), (1.0, 1000.0)])
def test_every_layer_steps_by_the_same_root_mean_square(algorithm, sizes):
    params = parameters(16, 16, 2)
    optimizer = stacked(params, algorithm, lr=0.01, weight_decay=0.0)
    give(params, 2, sizes)
    for step in moves(optimizer, params):
        assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=1e-9)


def test_one_scale_for_the_stack_gives_a_pair_of_ten_to_one_1_41_and_0_14():
    params = parameters(64, 64, 2)
    optimizer = stacked(params, joint_rms=True, lr=1.0, weight_decay=0.0, rank_ratio=0.0, min_rank=0)
    give(params, 3, [10.0, 1.0])
    sizes = [float(step.square().mean().sqrt()) / 0.2 for step in moves(optimizer, params)]
    assert sizes == pytest.approx([1.41, 0.14], abs=0.01)


def test_rank_zero_is_normalised_momentum():
    params = parameters(9, 7, 1)
    optimizer = stacked(params, lr=0.5, weight_decay=0.0, rank_ratio=0.0, min_rank=0)
    assert set(optimizer.state[params[0]]) == {"step", "momentum_buffer"}
    give(params, 4)
    (step,) = moves(optimizer, params)
    assert relative(step, -0.1 * unit(params[0].grad)) < 1e-12


def test_a_stack_of_one_is_spectra():
    stacks, singles = parameters(12, 20, 1), parameters(12, 20, 1)
    one, other = stacked(stacks), SpectraTEON(singles)
    assert other.param_groups[0]["algorithm"] == "spectra"
    for seed in range(3):
        give(stacks, seed)
        give(singles, seed)
        one.step()
        other.step()
    assert torch.equal(stacks[0], singles[0])


def test_the_largest_rank_is_teon_with_an_exact_factor_and_muon_for_one_layer():
    for count in (1, 2):
        params, twins = parameters(10, 8, count), parameters(10, 8, count)
        shaped = stacked(params, rank_ratio=1.0, cold_iter=200, lr=0.1, weight_decay=0.0)
        polar = stacked(
            twins, "teon", stack_dim=0, orthogonalization="svd", lr=0.1, weight_decay=0.0, scale="rms"
        )  # fmt: skip
        give(params, 5)
        give(twins, 5)
        for step, wanted in zip(moves(shaped, params), moves(polar, twins), strict=True):
            assert (step * wanted).sum() / step.norm() / wanted.norm() > 1 - 1e-12
            assert relative(step, wanted) < 1e-6


def test_a_transposed_weight_gets_the_transposed_update():
    (tall,), (wide,) = parameters(24, 10, 1), parameters(24, 10, 1)
    wide.data = wide.data.T.contiguous()
    optimizers = [SpectraTEON([p], lr=0.1) for p in (tall, wide)]
    for seed in range(4):
        give([tall], seed)
        wide.grad = tall.grad.T
        for optimizer in optimizers:
            optimizer.step()
    assert relative(wide.T, tall) < 1e-12


def test_mode_2_is_mode_1_of_transposed_layers():
    rows, columns = parameters(12, 10, 2), parameters(12, 10, 2)
    for p in columns:
        p.data = p.data.T.contiguous()
    keys = {"rank_scope": "stack", "min_rank": 3, "lr": 0.1}
    one, other = stacked(rows, stack_dim=0, **keys), stacked(columns, stack_dim=1, **keys)
    for seed in range(3):
        give(rows, seed)
        for p, twin in zip(rows, columns, strict=True):
            twin.grad = p.grad.T.contiguous()
        one.step()
        other.step()
    for p, twin in zip(rows, columns, strict=True):
        assert relative(twin.T, p) < 1e-12


def test_permuting_the_layers_of_a_stack_permutes_their_updates():
    params, swapped = parameters(14, 12, 3), parameters(14, 12, 3)
    one = stacked(params, cold_iter=80, weight_decay=0.0)
    order = [2, 0, 1]
    other = SpectraTEON(
        [{"params": swapped, "algorithm": "spectra_teon", "stacks": [[(i, 0, 14) for i in order]]}],
        cold_iter=80, weight_decay=0.0,
    )  # fmt: skip
    give(params, 6, [1.0, 3.0, 0.2])
    give(swapped, 6, [1.0, 3.0, 0.2])
    for step, twin in zip(moves(one, params), moves(other, swapped), strict=True):
        assert relative(twin, step) < 1e-7


def published(grads, momentum, k, stack, start, cold, lr, ratio=0.2):
    """Spectra's algorithm on a TEON stack, written from the papers alone: yields the update of every step.

    Undamped momentum; ``V`` tracked by one product each way; columns of ``M^T U`` normalised, never rotated; the
    spike's values lowered to the level of the tail; the whole stack's root mean square divided out.
    """
    m = torch.zeros_like(torch.cat(grads[0], dim=1))
    v = start
    for t, step in enumerate(grads):
        m = momentum * m + torch.cat(step, dim=1)
        for _ in range(cold if t == 0 else 1):
            u, _ = torch.linalg.qr(m @ v)
            w = m.T @ u
            s = w.norm(dim=0)
            v = w / s
        tail = ((m.square().sum() - s.square().sum()) / (min(m.shape) - k)).sqrt()
        o = m - (u * (s - torch.minimum(s, tail))) @ v.T
        yield [part * (ratio * lr / o.square().mean().sqrt()) for part in o.chunk(stack, dim=1)]


@pytest.mark.parametrize("stack", [1, 2])
def test_the_literal_form_is_the_published_algorithm(stack):
    params = parameters(16, 20, stack)
    optimizer = stacked(params, literal=True, lr=0.01, weight_decay=0.0, rank_ratio=0.2)
    grads = []
    for seed in range(6):
        give(params, seed, [1.0, 5.0][:stack])
        grads.append([p.grad.clone() for p in params])
    start = start_basis(20 * stack, 3, 0, 0)
    for step, wanted in zip(grads, published(grads, 0.95, 3, stack, start, 4, 0.01), strict=True):
        for p, grad in zip(params, step, strict=True):
            p.grad = grad
        for found, update in zip(moves(optimizer, params), wanted, strict=True):
            assert relative(found, -update) < 1e-10


def test_one_warm_step_is_close_to_exact_shaping_where_tracking_k_columns_is_not():
    """A drifting momentum with a decaying spectrum, as in training: eight extra columns are what makes it exact."""
    errors = {}
    for oversample in (0, 8):
        (p,) = parameters(64, 96, 1)
        optimizer = SpectraTEON([p], rank_ratio=0.0, min_rank=4, oversample=oversample, weight_decay=0.0, lr=0.1)
        draw, worst = torch.Generator().manual_seed(0), []
        scale = torch.arange(1, 97, dtype=torch.float64) ** -0.7
        for t in range(60):
            p.grad = torch.randn(64, 96, generator=draw, dtype=torch.float64) * scale
            (step,) = moves(optimizer, [p])
            wanted = -0.02 * unit(spectra_shape_reference(optimizer.state[p]["momentum_buffer"], 4).matrix)
            if t >= 20:
                worst.append(float((step - wanted).norm() / wanted.norm()))
        errors[oversample] = sorted(worst)[len(worst) // 2]
    assert errors[8] < 0.1 < errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_has_the_bits_of_torch(dtype, maximize):
    def fresh():
        return [nn.Parameter(torch.arange(35, dtype=dtype).view(5, 7) / 9), nn.Parameter(torch.ones(3, dtype=dtype))]

    ours, theirs = fresh(), fresh()
    keys = {"lr": 3e-3, "betas": (0.9, 0.97), "eps": 1e-7, "weight_decay": 0.2, "maximize": maximize}
    one = SpectraTEON([{"params": ours, "algorithm": "adamw"}], **keys)
    other = torch.optim.AdamW(theirs, foreach=False, **keys)
    for seed in range(7):
        give(ours, seed)
        give(theirs, seed)
        if seed == 3:
            ours[1].grad = theirs[1].grad = None
        one.step()
        other.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)])
def test_muon_is_torchs_muon_but_for_the_rounding_of_its_newton_schulz(shape):
    """Torch iterates in bfloat16. The tolerance is twice what that rounding does to the same matrix."""
    (ours,), (theirs,) = parameters(*shape, 1, dtype=torch.float32), parameters(*shape, 1, dtype=torch.float32)
    keys = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    one = SpectraTEON([{"params": [ours], "algorithm": "muon"}], **keys)
    other = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", nesterov=True, **keys)
    momentum = torch.zeros(shape)
    for seed in range(4):
        give([ours], seed)
        give([theirs], seed)
        momentum.lerp_(ours.grad, 0.05)
        ahead = ours.grad.lerp(momentum, 0.95)
        rounding = (orthogonalize(ahead.bfloat16()).float() - orthogonalize(ahead)).norm()
        step, wanted = moves(one, [ours])[0], moves(other, [theirs])[0]
        assert 0 < (step - wanted).norm() < 2 * 0.02 * 0.2 * max(shape) ** 0.5 * rounding
        theirs.data.copy_(ours.data)


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("match_rms", 0.2 * 40**0.5), ("spectral", (24 / 40) ** 0.5), ("original", 1.0), ("rms", None)],
)
def test_step_sizes_of_orthogonal_factors(scale, factor):
    (p,) = parameters(24, 40, 1)
    optimizer = SpectraTEON(
        [{"params": [p], "algorithm": "muon"}],
        lr=0.1,
        weight_decay=0.0,
        nesterov=False,
        scale=scale,
        orthogonalization="svd",
    )
    give([p], 8)
    (step,) = moves(optimizer, [p])
    wanted = orthogonalize(p.grad, "svd")
    assert relative(step, -0.1 * (0.2 * unit(wanted) if factor is None else factor * wanted)) < 1e-10


def test_teon_orthogonalizes_rows_side_by_side_and_muon_looks_ahead():
    params = parameters(12, 16, 2)
    optimizer = stacked(params, "teon", lr=0.1, weight_decay=0.0)
    give(params, 9, [1.0, 4.0])
    wanted = orthogonalize(torch.cat([unit(p.grad) for p in params], dim=1), "polar_express").chunk(2, dim=1)
    for step, factor in zip(moves(optimizer, params), wanted, strict=True):
        assert relative(step, -0.02 * unit(factor)) < 1e-10
    assert SpectraTEON([{"params": parameters(4, 4, 1), "algorithm": "muon"}]).param_groups[0]["nesterov"]
    assert not optimizer.param_groups[0]["nesterov"]


def test_decay_is_decoupled_and_unscaled():
    params = parameters(10, 10, 2)
    optimizer = stacked(params, lr=0.1, weight_decay=0.3)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, b in zip(params, before, strict=True):
        assert relative(p, b * (1 - 0.1 * 0.3)) < 1e-15


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e30])
@pytest.mark.parametrize("algorithm", ["spectra_teon", "teon", "spectra", "muon"])
@pytest.mark.parametrize("joint_rms", [False, True])
def test_the_scale_of_gradients_does_not_matter(scale, algorithm, joint_rms):
    sets = [parameters(12, 12, 2, dtype=torch.float32) for _ in range(2)]
    optimizers = [stacked(p, algorithm, lr=0.1, joint_rms=joint_rms) for p in sets]
    for seed in range(3):
        give(sets[0], seed, [1.0, 2.0])
        for p, twin in zip(*sets, strict=True):
            twin.grad = p.grad * scale
        for optimizer in optimizers:
            optimizer.step()
    for p, twin in zip(*sets, strict=True):
        assert relative(twin, p) < 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("algorithm", ["spectra_teon", "teon"])
def test_a_layer_that_is_not_finite_leaves_its_siblings_alone(bad, algorithm):
    params, healthy = parameters(12, 10, 3), parameters(12, 10, 3)
    keys = {"lr": 0.1, "rank_scope": "stack", "cold_iter": 80}
    one = stacked(params, algorithm, **keys)
    other = SpectraTEON(
        [{"params": healthy[::2], "algorithm": algorithm, "stacks": [[(0, 0, 12), (1, 0, 12)]]}], **keys
    )
    give(params, 1)
    give(healthy, 1)
    params[1].grad[3, 4] = bad
    one.step()
    other.step()
    assert params[1].isnan().all()
    assert relative(params[0], healthy[0]) < 1e-6
    assert relative(params[2], healthy[2]) < 1e-6
    assert all(t.isfinite().all() for name, t in one.state[params[0]].items() if name.startswith("basis"))


@pytest.mark.parametrize("literal", [False, True])
def test_parameters_without_a_gradient_are_left_out_and_pairs_do_not_shift(literal):
    params, lonely = parameters(12, 10, 2), parameters(12, 10, 1)
    optimizer, alone = stacked(params, literal=literal, lr=0.1), stacked(lonely, literal=literal, lr=0.1)
    give(params, 1)
    params[1].grad, still = None, params[1].detach().clone()
    give(lonely, 1)
    optimizer.step()
    alone.step()
    assert torch.equal(params[1], still)
    assert optimizer.state[params[1]]["step"] == 0
    assert not optimizer.state[params[1]]["momentum_buffer"].any()
    assert (params[0] - lonely[0]).abs().max() < 0.1  # stepped, by the same size, from its own start basis
    for seed in (2, 3):
        give(params, seed)
        steps = moves(optimizer, params)
        sizes = [
            float((step + 0.01 * p.detach()).square().mean().sqrt()) for step, p in zip(steps, params, strict=True)
        ]
        assert all(0.01 < size < 0.05 for size in sizes)


def test_odd_gradients():
    """Expanded, transposed and tiny gradients; a vector as a matrix; more rank than there is."""
    (p,), (row,) = parameters(8, 6, 1, dtype=torch.float32), parameters(1, 6, 1, dtype=torch.float32)
    (wide,) = parameters(3, 3, 1, dtype=torch.float32)
    optimizer = SpectraTEON([p, row, wide], lr=0.1, weight_decay=0.0, min_rank=50)
    for grad in (torch.ones(1, 6).expand(8, 6), torch.randn(6, 8).T, torch.full((8, 6), 1e-12)):
        p.grad, row.grad, wide.grad = grad, torch.ones(1, 6), torch.eye(3)
        for step in moves(optimizer, [p, row, wide]):
            assert float(step.square().mean().sqrt()) == pytest.approx(0.02, rel=1e-3)


def test_bfloat16_parameters_are_rounded_once():
    (p,), (twin,) = parameters(12, 16, 1, dtype=torch.bfloat16), parameters(12, 16, 1, dtype=torch.bfloat16)
    wide = nn.Parameter(twin.detach().float())
    one, other = SpectraTEON([p], lr=0.01), SpectraTEON([wide], lr=0.01)
    give([p], 3)
    wide.grad = p.grad.float()
    one.step()
    other.step()
    assert torch.equal(p, wide.bfloat16())
    assert one.state[p]["momentum_buffer"].dtype == torch.float32


def test_calls_are_counted_by_bucket_not_by_layer(monkeypatch):
    params = parameters(16, 16, 6, dtype=torch.float32)
    pairs = [[(i, 0, 16), (i + 1, 0, 16)] for i in (0, 2, 4)]
    optimizer = SpectraTEON([{"params": params, "algorithm": "spectra_teon", "stacks": pairs}])
    give(params, 0)
    optimizer.step()
    counts = {}

    def counting(module, name):
        original = getattr(module, name)

        def call(*args, **keys):
            counts[name] = counts.get(name, 0) + 1
            return original(*args, **keys)

        monkeypatch.setattr(module, name, call)

    counting(torch.linalg, "qr")
    counting(torch.linalg, "svd")
    counting(matrices, "find_spike")
    counting(torch.Tensor, "baddbmm_")
    counting(torch, "stack")
    optimizer.step()
    assert counts == {"qr": 2, "svd": 1, "find_spike": 1, "baddbmm_": 1, "stack": 2}


def test_state_is_half_of_adamws():
    params = parameters(768, 768, 2, dtype=torch.float32)
    ours, theirs = (
        stacked(params),
        SpectraTEON([{"params": parameters(768, 768, 2, dtype=torch.float32), "algorithm": "adamw"}]),
    )
    size = lambda o: sum(t.numel() * 4 for s in o.state.values() for n, t in s.items() if n != "step")  # noqa: E731
    assert size(theirs) == 2 * 2 * 768 * 768 * 4
    assert size(ours) / size(theirs) == pytest.approx(0.507, abs=5e-4)


def test_ill_conditioned_least_squares_converges():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(60, 12, generator=draw) * torch.logspace(0, -1.5, 12)
    target = a @ torch.randn(12, 8, generator=draw)
    losses = {}
    for rule in ("spectra", "muon", "adamw"):
        w = nn.Parameter(torch.zeros(12, 8))
        optimizer = SpectraTEON([{"params": [w], "algorithm": rule}], lr=0.5, weight_decay=0.0)
        for t in range(300):
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - t / 300)
            loss = (a @ w - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[rule] = float(loss.detach())
    assert max(losses.values()) < 1e-3 * float(target.square().mean())


def test_unknown_scale_for_a_shaped_matrix():
    with pytest.raises(ConfigError, match="scale 'spectral' is for orthogonal factors"):
        SpectraTEON(parameters(3, 4, 1), scale="spectral")
