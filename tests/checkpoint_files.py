"""Small checkpoints in every format, shared by tests."""

import json

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

SHAPES = {"b.weight": (3, 4), "a.bias": (5,), "a.scale": (), "c.weight": (2, 3, 2)}
WIDTH = 12 + 5 + 1 + 12


def state(seed=0, dtype=torch.float32, noise=1.0, shapes=SHAPES):
    """A state dict whose tensors are drawn in a fixed order, whatever order they are stored in."""
    source = torch.Generator().manual_seed(seed)
    return {name: (noise * torch.randn(shape, generator=source)).to(dtype) for name, shape in shapes.items()}


def vector(tensors):
    """The flat vector of a state dict: names in byte order, C order, float32."""
    return torch.cat([tensors[name].reshape(-1).float() for name in sorted(tensors, key=str.encode)])


def write(path, tensors, metadata=None):
    """Write a file by the library of the format its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".safetensors":
            save_file(tensors, path, metadata=metadata)
        case ".npy":
            np.save(path, np.asarray(tensors))
        case ".h5":
            with h5py.File(path, "w") as file:
                for name, value in tensors.items():
                    file[name] = value.numpy() if isinstance(value, torch.Tensor) else value
        case _:
            torch.save(tensors, path)
    return path


def write_shards(directory, tensors, n=2):
    """Write a checkpoint in several shards, as large ones come."""
    names = list(tensors)
    files = {name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        write(directory / file, {name: tensors[name] for name in names if files[name] == file})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": files}))
    return index


def collection(directory, n=6, **more):
    """Write ``n`` safetensors checkpoints; return their paths and their vectors ``[n, D]``."""
    states = [state(seed, **more) for seed in range(n)]
    paths = [write(directory / f"step-{i:02d}.safetensors", tensors) for i, tensors in enumerate(states)]
    return paths, torch.stack([vector(tensors) for tensors in states])
