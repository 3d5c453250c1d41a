"""Large matrices on a CPU are updated where they lie: what the batch computes, but for rounding."""

import pytest
import torch
from planted_spectra import relative
from torch import nn

from eigenloom import SpectraTEON
from eigenloom.optim import in_place, matrices


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(in_place, "LARGE", 1)


def stacked(shape, count, dtype=torch.float64, **keys):
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)) for _ in range(count)]
    whole = [[(i, 0, shape[0]) for i in range(count)]]
    return params, SpectraTEON([{"params": params, "algorithm": "spectra_teon", "stacks": whole}], lr=0.1, **keys)


def trained(shape, count, steps=4, spike=0.0, **keys):
    params, optimizer = stacked(shape, count, **keys)
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        for i, p in enumerate(params):
            grad = torch.randn(shape, generator=draw, dtype=torch.float64) + spike
            p.grad = (grad * 10.0**i).to(p.dtype)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
@pytest.mark.parametrize(("count", "stack_dim"), [(1, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_the_batched_update(monkeypatch, shape, count, stack_dim, decay):
    keys = {"stack_dim": stack_dim, "weight_decay": decay, "min_rank": 3, "spike": 0.3}
    batched, slow = trained(shape, count, **keys)
    monkeypatch.setattr(in_place, "LARGE", 1)
    calls = []
    monkeypatch.setattr(matrices, "gather", lambda *_: calls.append(1))
    placed, fast = trained(shape, count, **keys)
    assert not calls
    for p, q in zip(placed, batched, strict=True):
        assert relative(p, q) < 1e-11
    basis, wanted = (optimizer.state[ps[0]]["basis_0"] for ps, optimizer in ((placed, fast), (batched, slow)))
    assert relative(basis @ basis.T, wanted @ wanted.T) < 1e-9
    assert fast.summary(rms=True) == slow.summary(rms=True)


@pytest.mark.usefixtures("small_is_large")
def test_each_layer_moves_by_its_root_mean_square_in_float32():
    params, optimizer = stacked((64, 48), 2, torch.float32, weight_decay=0.0)
    for size in (1.0, 1e-30, 1e30):
        before = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).add_(1.0) * size * 1000.0**i
        optimizer.step()
        moved = [float((p.detach() - b).square().mean().sqrt()) for p, b in zip(params, before, strict=True)]
        assert moved == pytest.approx([0.02, 0.02], rel=1e-4)


@pytest.mark.usefixtures("small_is_large")
def test_where_nearly_nothing_is_left_the_size_is_measured():
    """Rank one over rounding: the norm of what is left drowns in the difference it would be taken from."""
    params, optimizer = stacked((64, 48), 1, torch.float32, weight_decay=0.0, min_rank=1)
    before = params[0].detach().clone()
    params[0].grad = 1 + 2e-3 * torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    size, bucket = float(params[0].grad.square().mean().sqrt()), optimizer._plan(0, [True])[0]
    group, state = optimizer.param_groups[0], optimizer.state
    assert in_place.update_in_place(group, bucket, {0: params[0].grad}, [size], state, 0.02) is None
    assert torch.equal(params[0], before)
    optimizer.step()
    assert float((params[0].detach() - before).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-4)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_layers_that_are_not_sound_take_the_careful_way(bad):
    params, optimizer = stacked((32, 32), 2, torch.float32, weight_decay=0.0)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.full((32, 32), bad)
    params[1].grad = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert torch.equal(params[0], before[0]) if bad == 0.0 else bool(params[0].isnan().all())
    assert float((params[1].detach() - before[1]).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-4)


@pytest.mark.usefixtures("small_is_large")
def test_rows_of_a_fused_weight_get_the_bits_of_separate_weights():
    draw = torch.Generator().manual_seed(0)
    whole = [torch.randn(96, 32, generator=draw) for _ in range(2)]
    fused = [nn.Parameter(w.clone()) for w in whole]
    separate = [nn.Parameter(w[32 * r : 32 * r + 32].clone()) for w in whole for r in range(3)]
    ours = SpectraTEON([
        {"params": fused, "algorithm": "spectra_teon", "stacks": [[(0, 32 * r, 32), (1, 32 * r, 32)] for r in range(3)]}
    ])  # fmt: skip
    theirs = SpectraTEON([
        {"params": separate, "algorithm": "spectra_teon", "stacks": [[(r, 0, 32), (3 + r, 0, 32)] for r in range(3)]}
    ])  # fmt: skip
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        for i, p in enumerate(fused):
            p.grad = torch.randn(96, 32, generator=draw)
            for r in range(3):
                separate[3 * i + r].grad = p.grad[32 * r : 32 * r + 32].clone()
        ours.step()
        theirs.step()
    assert all(torch.equal(torch.cat(separate[3 * i : 3 * i + 3]), fused[i]) for i in range(2))
