"""Settings every test shares."""

import os

import hypothesis
import torch

# Cores are shared between workers, and some promises hold for a fixed number of threads only.
torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["SLURM_CONF"] = "/dev/null"

hypothesis.settings.register_profile("eigenloom", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("eigenloom")


def pytest_collection_modifyitems(items):
    """Start the longest files first, so that two workers end together; files are dealt whole."""
    items.sort(key=lambda item: ("test_tiny" not in item.nodeid, item.get_closest_marker("dag") is None))
