"""The sparse autoencoder: planted dictionaries found, gradients those of autograd, dead elements revived."""

import pytest
import torch
from problems import decaying_rows

from eigenloom.bases.sae import SparseAutoencoder
from eigenloom.bases.sae_settings import Settings
from eigenloom.bases.sae_training import State, Trainer
from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.sources.arrays import ArrayRows


def planted(n, d, k, n_active, seed=0):
    """Rows that are few elements of a dictionary each, weights from 1 to 2; the dictionary ``[k, d]``."""
    source = torch.Generator().manual_seed(seed)
    elements = torch.nn.functional.normalize(torch.randn(k, d, generator=source), dim=1)
    chosen = torch.rand(n, k, generator=source).topk(n_active, dim=1).indices
    codes = torch.zeros(n, k).scatter_(1, chosen, 1 + torch.rand(n, n_active, generator=source))
    return codes @ elements + 0.3, elements


def nmse(basis, rows):
    error = (basis.decode(basis.encode(rows)) - rows).double().square().sum()
    return float(error / (rows - rows.mean(0)).double().square().sum())


def test_a_planted_dictionary_is_recovered():
    rows, elements = planted(20_000, 24, 32, 2)
    settings = {"n_components": 40, "n_active": 2, "batch_size": 512, "lr": 5e-3, "dead_after": 4096}
    trained = SparseAutoencoder.fit(ArrayRows(rows), seed=0, steps=1200, **settings)
    untrained = SparseAutoencoder.fit(ArrayRows(rows), seed=0, steps=0, **settings)
    found = (elements @ trained.decoder.T).amax(1)
    assert (found > 0.95).float().mean() > 0.8
    assert (elements @ untrained.decoder.T).amax(1).max() < 0.95
    assert nmse(trained, rows) < 0.1
    assert 0.6 < nmse(untrained, rows) < 1
    assert nmse(trained, planted(1000, 24, 32, 2, seed=0)[0]) < 0.1
    torch.testing.assert_close(trained.decoder.norm(dim=1), torch.ones(40))
    codes = trained.encode(rows)
    assert ((codes > 0).sum(1) <= 2).all()
    assert (codes >= 0).all()
    assert trained.history[-1, 0] < trained.history[0, 0]
    assert len(untrained.history) == 0


def start(seed=0, k=12, d=8):
    source = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(k, d, generator=source), dim=1)
    state = State.start(torch.randn(k, d, generator=source), decoder, torch.device("cpu"))
    state.encoder_bias += 0.1 * torch.randn(k, generator=source)
    state.bias += 0.1 * torch.randn(d, generator=source)
    return state, torch.randn(50, d, generator=source)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_gradients_are_those_of_autograd(auxiliary):
    """The loss, written down once more and differentiated by torch; AuxK as well."""
    state, rows = start()
    if auxiliary:
        state.idle[[1, 4, 7, 8, 9]] = 1 << 30
    leaves = {n: getattr(state, n).clone().requires_grad_() for n in ("encoder", "encoder_bias", "decoder", "bias")}
    drive = (rows - leaves["bias"]) @ leaves["encoder"].T + leaves["encoder_bias"]
    values, indices = drive.topk(3)
    codes = torch.zeros_like(drive).scatter(1, indices, values.relu())
    residual = rows - leaves["bias"] - codes @ leaves["decoder"]
    loss = residual.square().mean()
    if auxiliary:
        values, indices = drive.masked_fill(state.idle == 0, 0.0).topk(4)
        spare = torch.zeros_like(drive).scatter(1, indices, values.relu())
        target = residual.detach()
        error = (target - spare @ leaves["decoder"]).square().sum() / target.square().sum()
        loss = loss + error / 32
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    seen = {}
    trainer = Trainer(Settings(n_components=12, n_active=3, steps=10, dead_after=1 << 20, n_aux=4), state)
    trainer._descend = lambda gradients, number: seen.update(gradients)
    trainer.step(rows, 0)
    for name in set(wanted) - ({"bias"} if auxiliary else set()):  # AuxK moves the dead elements alone
        torch.testing.assert_close(seen[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_the_decoder_moves_along_the_sphere():
    state, rows = start()
    before = state.decoder.clone()
    trainer = Trainer(Settings(n_components=12, n_active=3, steps=10, warmup=0, lr=1e-4), state)
    trainer.step(rows, 0)
    assert torch.equal(state.decoder.norm(dim=1) > 0.999999, torch.ones(12, dtype=torch.bool))
    assert not torch.equal(state.decoder, before)
    gradient = state.first[12 * 8 + 12 : 2 * 12 * 8 + 12].view(12, 8)  # of the first step, times a tenth
    assert (gradient * before).sum(1).abs().max() < 1e-6 * gradient.norm()


def test_dead_elements_are_revived():
    """Elements that begin too faint to be among the largest: with AuxK they come alive, without it most stay dead."""
    rows, _ = planted(8192, 16, 24, 2, seed=3)
    dead = {}
    for weight in (0.0, 1 / 32):
        settings = Settings(n_components=24, n_active=2, steps=800, batch_size=256, dead_after=1024, aux_weight=weight,
                            lr=5e-3)  # fmt: skip
        source = torch.Generator().manual_seed(1)
        decoder = torch.nn.functional.normalize(torch.randn(24, 16, generator=source), dim=1)
        state = State.start(decoder.clone(), decoder, torch.device("cpu"))
        state.encoder[8:] *= 0.01
        trainer = Trainer(settings, state)
        centred = (rows - rows.mean(0)) / rows.std()
        order = generator(0, "shuffle")
        for step in range(settings.steps):
            trainer.step(centred[torch.randint(len(rows), (256,), generator=order)], step)
        dead[weight] = int((state.idle >= settings.dead_after).sum())
    assert dead[0.0] >= 6
    assert dead[1 / 32] <= 2


def test_units_of_the_rows_do_not_matter():
    """Rows in other units and far from zero give the same elements, and codes in those units."""
    rows = decaying_rows(4000, 12, mean=0.2)
    settings = {"n_components": 16, "n_active": 3, "steps": 100, "batch_size": 500}
    one = SparseAutoencoder.fit(ArrayRows(rows), seed=0, **settings)
    other = SparseAutoencoder.fit(ArrayRows(rows * 1024), seed=0, **settings)
    torch.testing.assert_close(other.decoder, one.decoder, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.encode(rows * 1024) / 1024, one.encode(rows), rtol=1e-3, atol=1e-4)


def test_more_active_elements_reconstruct_better():
    rows = decaying_rows(6000, 24)
    errors = [
        nmse(
            SparseAutoencoder.fit(ArrayRows(rows), seed=0, n_components=48, n_active=k, steps=400, batch_size=500), rows
        )
        for k in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_active": 9, "n_components": 8}, "n_active: 9, but there are 8 elements"),
        ({"steps": -1}, "steps: -1 is out of range; it must be at least 0"),
        ({"lr": 0}, "lr: 0 is out of range; it must be above 0"),
        ({"batch_size": 2.5}, "batch_size: 2.5 is not a whole number"),
        ({"aux_weight": "x"}, "aux_weight: 'x' is not a number"),
        ({"epochs": 3}, "sae has no parameter 'epochs'; it takes n_components, n_active"),
    ],
)
def test_mistakes_are_refused(parameters, words):
    with pytest.raises(ConfigError, match=words):
        SparseAutoencoder.fit(ArrayRows(decaying_rows(100, 4)), seed=0, **parameters)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_as_well():
    rows = decaying_rows(20_000, 24)
    settings = {"n_components": 48, "n_active": 4, "steps": 300, "batch_size": 1000}
    cpu = SparseAutoencoder.fit(ArrayRows(rows), seed=0, **settings)
    cuda = SparseAutoencoder.fit(ArrayRows(rows), seed=0, device="cuda", **settings)
    assert nmse(cuda, rows) == pytest.approx(nmse(cpu, rows), rel=0.05)
    on_card = cuda.encode(rows[:100].cuda())
    torch.testing.assert_close(on_card.cpu(), cuda.encode(rows[:100]), rtol=1e-3, atol=1e-3)
