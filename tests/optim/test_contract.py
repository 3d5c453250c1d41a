"""What users expect of any optimizer: exact checkpoints, schedulers, scalers, closures, copies, hooks, refusals."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from eigenloom import SpectraTEON
from eigenloom.errors import ConfigError, DataError, MismatchError


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        return x + self.o_proj(torch.tanh(self.q_proj(x) + self.k_proj(x)) * self.v_proj(x))


class Tiny(nn.Module):
    """Three blocks, so that each role has a pair and a leftover; every rule has a group."""

    def __init__(self, width=12):
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def model(dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny().to(dtype)


def backward(net, step):
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(7, (4, 9), generator=draw)
    loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1).float(), tokens.roll(1, 1).flatten())
    net.zero_grad()
    loss.backward()
    return loss.detach()


def advance(net, optimizer, steps):
    for step in steps:
        backward(net, step)
        optimizer.step()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def same_state(a, b):
    left, right = a.state_dict()["state"], b.state_dict()["state"]
    return left.keys() == right.keys() and all(
        left[i].keys() == right[i].keys()
        and all(torch.equal(left[i][n], right[i][n]) and left[i][n].dtype == right[i][n].dtype for n in left[i])
        for i in left
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ["spectra_teon", "teon"])
def test_save_load_continue_is_exact(dtype, algorithm):
    whole = model(dtype)
    optimizer = SpectraTEON.from_model(whole, algorithm=algorithm)
    advance(whole, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    advance(whole, optimizer, range(5, 10))
    resumed = model(dtype, seed=9)
    again = SpectraTEON.from_model(resumed, algorithm=algorithm, seed=4)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    advance(resumed, again, range(5, 10))
    assert same(resumed, whole)
    assert same_state(again, optimizer)


def test_loading_copies_and_keeps_float32_momenta_of_bfloat16_models():
    net = model(torch.bfloat16)
    optimizer = SpectraTEON.from_model(net)
    advance(net, optimizer, range(2))
    saved = optimizer.state_dict()
    other = SpectraTEON.from_model(net)
    other.load_state_dict(saved)
    p = other.param_groups[0]["params"][0]
    ours = other.state[p]["momentum_buffer"]
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, ours.bfloat16().float())
    assert ours.data_ptr() != saved["state"][0]["momentum_buffer"].data_ptr()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stack": 1}, "stacks of group 0 .spectra_teon. differ, stack 0 is"),
        ({"algorithm": "teon"}, "algorithm of group 0 .teon. is 'spectra_teon' there, 'teon' here"),
        ({"stack_dim": 1}, "stack_dim of group 0 .spectra_teon. is 0 there, 1 here"),
        ({"oversample": 2}, r"basis_0 of parameter 0 in group 0 .spectra_teon. is \(12, 12\) there, \(12, 6\) here"),
        ({"algorithm": "adamw"}, "it has 4 parameter groups, here are 2"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_its_first_difference(keys, message):
    saved = SpectraTEON.from_model(model()).state_dict()
    live = SpectraTEON.from_model(model(), **keys)
    before = copy.deepcopy(live.state_dict())
    with pytest.raises(MismatchError, match=message):
        live.load_state_dict(saved)
    assert str(live.state_dict()) == str(before)


def test_a_checkpoint_of_another_width_is_refused():
    with pytest.raises(MismatchError, match=r"stack 0 is \[\[0, 0, 16\]"):
        SpectraTEON.from_model(Tiny(12)).load_state_dict(SpectraTEON.from_model(Tiny(16)).state_dict())


def test_hooks_of_the_user_see_and_change_what_is_loaded():
    net = model()
    optimizer = SpectraTEON.from_model(net)
    advance(net, optimizer, range(2))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    halve = lambda _, sd: {**sd, "state": {i: {n: t / 2 for n, t in s.items()} for i, s in sd["state"].items()}}  # noqa: E731
    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(saved)
    p = optimizer.param_groups[0]["params"][0]
    assert torch.equal(optimizer.state[p]["momentum_buffer"], saved["state"][0]["momentum_buffer"] / 2)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_step_hooks_run():
    net, seen = model(), []
    optimizer = SpectraTEON.from_model(net)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    advance(net, optimizer, range(1))
    assert seen == ["before", "after"]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301 (our own bytes)
def test_copies_continue_alike(how):
    net = model()
    optimizer = SpectraTEON.from_model(net)
    advance(net, optimizer, range(3))
    twin, other = how((net, optimizer))
    advance(net, optimizer, range(3, 6))
    advance(twin, other, range(3, 6))
    assert same(net, twin)
    assert same_state(optimizer, other)


def test_same_seed_same_bytes_and_the_global_generator_plays_no_part():
    nets = [model() for _ in range(3)]
    for i, net in enumerate(nets):
        torch.manual_seed(i)
        advance(net, SpectraTEON.from_model(net, seed=max(i, 1), rank_ratio=0.2, min_rank=0, oversample=0), range(3))
    assert same(nets[0], nets[1])
    assert not same(nets[1], nets[2])


def test_schedulers_move_every_group_and_steps_follow():
    net = model()
    optimizer = SpectraTEON.from_model(net, lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        assert [group["lr"] for group in optimizer.param_groups] == [0.5**step] * 4
        before = net.blocks[0].q_proj.weight.detach().clone()
        advance(net, optimizer, [step])
        moved = (net.blocks[0].q_proj.weight.detach() - before).square().mean().sqrt()
        assert float(moved) == pytest.approx(0.2 * 0.5**step, rel=1e-4)
        schedule.step()


def test_one_cycle_moves_every_rate_and_adamws_beta_but_no_momentum():
    net = model()
    optimizer = SpectraTEON.from_model(net)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    advance(net, optimizer, range(1))
    schedule.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert all(group["lr"] > 0.004 and group["betas"][0] < 0.95 for group in optimizer.param_groups)
    assert all(group["momentum"] == 0.95 for group in optimizer.param_groups)
    saved = optimizer.state_dict()
    SpectraTEON.from_model(model()).load_state_dict(saved)


def test_learning_rates_may_be_tensors():
    nets = [model(), model()]
    optimizers = [SpectraTEON.from_model(nets[0], lr=0.25), SpectraTEON.from_model(nets[1], lr=torch.tensor(0.25))]
    for net, optimizer in zip(nets, optimizers, strict=True):
        advance(net, optimizer, range(3))
    # 1 - 0.25 * 0.1 is rounded to float32 in one of them and to float64 in the other.
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_scaler_skips_steps_with_infinite_gradients():
    net, twin = model(), model()
    optimizer, plain = SpectraTEON.from_model(net), SpectraTEON.from_model(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        scaled = model()
        scaled.load_state_dict(net.state_dict())
        loss = backward(net, step)
        for p in net.parameters():
            p.grad *= scaler.scale(torch.ones(()))
        if step == 1:
            net.head.weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert same(net, scaled)
        else:
            backward(twin, step)
            plain.step()
        assert loss.isfinite()
    assert same(net, twin)  # a power of two scales exactly


def test_closure_is_called_with_gradients_on_and_its_loss_returned():
    net = model()
    optimizer = SpectraTEON.from_model(net)
    before = net.head.weight.detach().clone()

    def closure():
        assert torch.is_grad_enabled()
        return backward(net, 0)

    loss = optimizer.step(closure)
    assert loss.isfinite()
    assert not torch.equal(before, net.head.weight)


def test_zero_grad_and_maximize():
    nets = [model(), model()]
    plain, reverse = SpectraTEON.from_model(nets[0]), SpectraTEON.from_model(nets[1], maximize=True)
    backward(nets[0], 0)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        q.grad = -p.grad
    plain.step()
    reverse.step()
    assert same(*nets)
    plain.zero_grad()
    assert all(p.grad is None for p in nets[0].parameters())


def test_groups_are_added_after_unfreezing():
    net = model()
    net.blocks[2].requires_grad_(False)
    optimizer = SpectraTEON.from_model(net)
    assert "blocks.2" not in optimizer.summary()
    net.blocks[2].requires_grad_(True)
    weights = [(n, p) for n, p in net.named_parameters() if n.startswith("blocks.2") and p.ndim == 2]
    optimizer.add_param_group({"params": weights, "algorithm": "spectra", "lr": 0.5, "weight_decay": 0.0})
    assert "blocks.2.q_proj.weight" in optimizer.summary()
    before = weights[0][1].detach().clone()
    advance(net, optimizer, range(1))
    assert float((weights[0][1].detach() - before).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ConfigError, match=r"shape \(12, 12\) was given twice"):
        optimizer.add_param_group({"params": weights[:1]})
    with pytest.raises(ConfigError, match="unknown key 'momentun'"):
        optimizer.add_param_group({"params": [("x", nn.Parameter(torch.ones(2, 2)))], "momentun": 0.9})
    assert len(optimizer.param_groups) == 5


def test_summary_says_what_happens_to_every_parameter():
    net = model()
    optimizer = SpectraTEON.from_model(net, lr=0.1)
    lines = optimizer.summary().splitlines()
    assert lines[0].split() == ["name", "shape", "rule", "stack", "side", "k", "q", "why"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert all(name in rows for name, _ in net.named_parameters())
    assert "12x12  spectra_teon  0 (K=2)  columns  4  12  q projection" in rows["blocks.1.q_proj.weight"]
    assert "1 (K=1)" in rows["blocks.2.q_proj.weight"]
    assert "output head" in rows["head.weight"]
    assert "embedding" in rows["embedding.weight"]
    elements = sum(p.numel() for p in net.parameters())
    assert sum(int(line.split()[3]) for line in lines if line.endswith("bytes of state")) == elements
    advance(net, optimizer, range(1))
    assert (
        "0.02"
        in {line.split()[0]: line.split()[-1] for line in optimizer.summary(rms=True).splitlines()}[
            "blocks.0.q_proj.weight"
        ]
    )


def matrix(*shape, **keys):
    return nn.Parameter(torch.ones(shape, **keys))


class DTensor(nn.Parameter):
    """Stands for torch's sharded tensor: told by its name."""


@pytest.mark.parametrize(
    ("params", "keys", "message"),
    [
        ([], {}, r"there are no parameters to optimize; .* use from_model"),
        ([matrix(3)], {}, r"parameter 0 of shape \(3,\) is no matrix .* use SpectraTEON.from_model"),
        ([matrix(2, 2, dtype=torch.complex64)], {}, "a torch.complex64 tensor was given"),
        ([torch.ones(2, 2, dtype=torch.int64)], {}, "a torch.int64 tensor was given"),
        ([DTensor(torch.ones(2, 2))], {}, "a DTensor is a shard"),
        ([matrix(2, 2)] * 2, {}, r"shape \(2, 2\) was given twice"),
        ([matrix(2, 2)], {"rank": 3}, "unknown argument 'rank'; known: lr, momentum"),
        ([matrix(2, 2)], {"lr": -1.0}, "lr is -1.0 in a group of spectra, must be a number from 0 on"),
        ([matrix(2, 2)], {"lr": torch.ones(2)}, "lr is tensor"),
        ([matrix(2, 2)], {"momentum": 1.0}, "momentum is 1.0 .* must be a number in"),
        ([matrix(2, 2)], {"rank_ratio": 1.5}, "rank_ratio is 1.5"),
        ([matrix(2, 2)], {"n_iter": 0}, "n_iter is 0 .* a whole number from 1 on"),
        ([matrix(2, 2)], {"stack_dim": 2}, "stack_dim is 2 .* one of 0, 1"),
        ([matrix(2, 2)], {"ritz": 1}, "ritz is 1 .* one of True, False"),
        ([matrix(2, 2)], {"algorithm": "sgd"}, "'sgd' is no algorithm; use spectra_teon"),
        ([{"params": [matrix(2, 2)], "algorithm": "muon", "beta": 1}], {}, "unknown key 'beta' in a group of muon"),
        ([{"params": [matrix(2, 2), matrix(2, 3)], "stacks": [[(0, 0, 2), (1, 0, 2)]]}], {}, "mixes 2 x 2 "),
        ([{"params": [matrix(4, 2)], "stacks": [[(0, 0, 2)]]}], {}, "do not hold each of the 4 rows of parameter 0"),
        ([{"params": [matrix(4, 2)], "stacks": [[(0, 0, 3)], [(0, 2, 2)]]}], {}, "exactly once"),
        ([{"params": [matrix(4, 2)], "stacks": [[(1, 0, 4)]]}], {}, "names no parameter of it"),
        ([{"params": [matrix(4, 2)], "transposed": [3]}], {}, "transposed names 3"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(params, keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        SpectraTEON(params, **keys)
    assert "\n" not in str(caught.value)


def test_a_sparse_gradient_is_refused():
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = SpectraTEON([{"params": [p], "algorithm": "adamw"}])
    p.grad = torch.eye(3).to_sparse()
    with pytest.raises(DataError, match="a gradient is sparse; use nn.Embedding"):
        optimizer.step()


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = SpectraTEON([matrix(2, 2)])
    with pytest.raises(ConfigError, match="exactly once"):
        optimizer.add_param_group({"params": [matrix(4, 2)], "stacks": [[(0, 0, 3)]]})
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == 1


def test_named_parameters_are_taken():
    optimizer = SpectraTEON([("weight", matrix(3, 4))])
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    assert "weight" in optimizer.summary()


def test_the_step_runs_under_compile():
    """Graphs break where the host looks at sizes; what the pieces compute is the same but for rounding."""
    sets = [[matrix(6, 5), matrix(6, 5)] for _ in range(2)]
    stacks = [[(0, 0, 6), (1, 0, 6)]]
    optimizers = [SpectraTEON([{"params": p, "algorithm": "spectra_teon", "stacks": stacks}]) for p in sets]
    compiled = torch.compile(optimizers[1].step, backend="eager")
    for step in range(2):
        draw = torch.Generator().manual_seed(step)
        for p, twin in zip(*sets, strict=True):
            p.grad = twin.grad = torch.randn(6, 5, generator=draw)
        optimizers[0].step()
        compiled()
    for p, twin in zip(*sets, strict=True):
        assert torch.allclose(p, twin, rtol=0, atol=1e-6)
