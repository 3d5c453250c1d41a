"""Checkpoints along a training: the right steps, the weights of those steps, nothing of another training."""

import os
import signal

import pytest
import torch
from coloured_patches import ColouredPatches
from safetensors.torch import load_file

from eigenloom.errors import Interrupted, StoreError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.training import Schedule, adamw, train
from eigenloom.nn.trajectory import Trajectory, snapshot_steps
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.sources.preprocess import Preprocess

IDENTITY = {"name": "test"}
STEPS = {f"snapshot-{i:02d}.safetensors": 10 * i for i in range(1, 5)}


def test_steps_are_equally_spaced_and_end_with_the_last():
    assert snapshot_steps(40, 4) == STEPS
    assert list(snapshot_steps(7, 3).values()) == [2, 5, 7]
    assert snapshot_steps(40, 0) == {}


def fresh():
    return SmallViT(ViTConfig((2, 3), 4, 16, 2, 2, 3), seed=3)


def run(model, **more):
    data = LabelledPatches.from_images(ColouredPatches(20), Preprocess(4), torch.device("cpu"))
    return train(model, data, Schedule(steps=40, batch_size=8, warmup=5), adamw(3e-3), seed=7, **more)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def loaded(path):
    model = fresh()
    model.load_state_dict(load_file(path))
    return model


def test_kept_weights_are_those_after_their_steps_and_training_is_not_disturbed(tmp_path):
    seen, plain, watched = {}, fresh(), fresh()
    trajectory = Trajectory(tmp_path / "kept", IDENTITY, STEPS)

    def watch(step, model):
        trajectory(step, model)
        seen[step] = model.head.weight.detach().clone()

    losses = run(plain)
    assert torch.equal(run(watched, on_step=watch), losses)
    assert equal(plain, watched)
    facts = trajectory.publish(tmp_path / "model")
    assert list(facts) == list(STEPS)
    for name, step in STEPS.items():
        assert torch.equal(loaded(tmp_path / "model" / name).head.weight, seen[step])
        assert facts[name]["bytes"] == (tmp_path / "model" / name).stat().st_size
    assert equal(loaded(tmp_path / "model/snapshot-04.safetensors"), plain)
    assert not (tmp_path / "kept").exists()


def test_a_resumed_training_publishes_the_same_bytes(tmp_path):
    whole = Trajectory(tmp_path / "a", IDENTITY, STEPS)
    run(fresh(), on_step=whole)
    expected = whole.publish(tmp_path / "whole")
    first = Trajectory(tmp_path / "b", IDENTITY, STEPS)

    def interrupt(step, model):
        first(step, model)
        if step == 25:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = {"resume": tmp_path / "snapshot", "identity": IDENTITY}
    with pytest.raises(Interrupted):
        run(fresh(), on_step=interrupt, **arguments)
    second = Trajectory(tmp_path / "b", IDENTITY, STEPS)
    run(fresh(), on_step=second, **arguments)
    assert second.publish(tmp_path / "pieces") == expected


def test_weights_of_another_training_are_not_taken(tmp_path):
    run(fresh(), on_step=Trajectory(tmp_path / "kept", {"name": "other"}, STEPS))
    with pytest.raises(StoreError, match=r"snapshot-01.safetensors: the weights after step 10 are missing"):
        Trajectory(tmp_path / "kept", IDENTITY, STEPS).publish(tmp_path / "model")
