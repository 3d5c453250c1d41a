"""The race: sweeps end inside, tasks are a function of their seed, seconds are those of the optimizer alone."""

import math

import pytest
import torch
from coloured_patches import ColouredPatches

from eigenloom.nn.char_gpt import Characters, CharGPT, mean_loss
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.race import PatchTask, Stopwatch, TextTask, sweep
from eigenloom.nn.training import Schedule, adamw
from eigenloom.nn.vit import ViTConfig
from eigenloom.sources.preprocess import Preprocess

VERSE = "round and round the rugged rocks the ragged rascal ran; " * 40


def text_task(steps=30):
    return TextTask(Characters.of(VERSE), 16, 2, 2, 12, Schedule(steps, 8, warmup=3))


def test_a_sweep_goes_on_until_the_best_is_inside():
    found = sweep(lambda rate: (math.log2(rate) - 5) ** 2, 1.0, 20)
    assert found.best == 32.0
    assert found.is_interior
    assert sorted(found.losses) == [2.0**i for i in range(-1, 7)]
    down = sweep(lambda rate: (math.log2(rate) + 3) ** 2, 1.0, 20)
    assert (down.best, down.is_interior) == (0.125, True)


def test_a_sweep_that_gives_up_says_so_and_divergence_is_no_success():
    assert not sweep(lambda rate: -rate, 1.0, 5).is_interior
    found = sweep(lambda rate: math.nan if rate > 1 else -rate, 1.0, 5)
    assert found.best == 1.0
    assert found.is_interior


def test_text_is_numbered_and_its_end_kept():
    text = Characters.of("abcabcabca")
    assert text.alphabet == "abc"
    assert text.train.tolist() == [0, 1, 2] * 3
    assert text.val.tolist() == [0]
    x, y = text.batch(5, 4, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (5, 4)
    assert torch.equal(x[:, 1:], y[:, :-1])
    topics = Characters.of_python_topics()
    assert len(topics.train) > 100_000
    assert len(topics.sha256) == 64


def test_no_character_sees_the_next():
    model = CharGPT(7, 16, 2, 2, 10)
    tokens = torch.randint(7, (2, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 7
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_mean_loss_of_even_odds_is_the_logarithm_of_the_alphabet():
    model = CharGPT(7, 16, 1, 2, 10)
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert mean_loss(model, torch.arange(200) % 7) == pytest.approx(math.log(7), rel=1e-5)


def test_text_is_learned_and_a_function_of_the_seed():
    outcomes = [text_task().run(adamw(1e-2), seed) for seed in (0, 0, 1)]
    assert outcomes[0].losses[-5:].mean() < 0.7 * outcomes[0].losses[:3].mean()
    assert torch.equal(outcomes[0].losses, outcomes[1].losses)
    assert outcomes[0].loss == outcomes[1].loss
    assert outcomes[0].loss != outcomes[2].loss
    assert outcomes[0].loss < 2.5


def test_patches_are_learned_and_judged_on_others():
    def patches(n, seed):
        return LabelledPatches.from_images(ColouredPatches(n, seed), Preprocess(4), torch.device("cpu"))

    task = PatchTask(patches(20, 0), patches(10, 1), ViTConfig((2, 3), 4, 16, 2, 2, 3), Schedule(20, 8, warmup=3))
    outcome = task.run(adamw(3e-3), 0)
    assert outcome.losses.shape == outcome.seconds.shape == (20,)
    assert outcome.losses[-3:].mean() < outcome.losses[:3].mean()
    assert outcome.loss == task.run(adamw(3e-3), 0).loss


def test_the_stopwatch_counts_steps_and_nothing_else():
    watch = Stopwatch(lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
    optimizer = watch(torch.nn.Linear(3, 3))
    assert watch.seconds.shape == (0,)
    sum(i * i for i in range(300_000))
    optimizer.step()
    optimizer.step()
    assert watch.seconds.shape == (2,)
    assert (watch.seconds >= 0).all()
