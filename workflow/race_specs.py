"""Specifications of the races of optimizers."""

from collections.abc import Mapping
from typing import Any

from image_source import ImageSource
from source import Wildcards


class RaceSpecs:
    """The part of ``Specs`` that is about races."""

    config: Mapping[str, Any]

    def _images(self, w: Wildcards) -> ImageSource:
        """The source of images that a job is about."""
        raise NotImplementedError

    def race(self, w: Wildcards) -> dict[str, Any]:
        """One optimizer on one task, at rates that an earlier sweep found."""
        return self._race(w, "reduced")

    def race_full(self, w: Wildcards) -> dict[str, Any]:
        """The same, rates swept first."""
        return self._race(w, "full")

    def rank_full(self, w: Wildcards) -> dict[str, Any]:
        """Whose race it is."""
        return dict(w)

    def _race(self, w: Wildcards, name: str) -> dict[str, Any]:
        """Task, contestant and protocol of a race."""
        race, task = self.config["optimizers"], w["task"]
        entry = {key: value for key, value in race["entries"][w["entry"]].items() if value is not None}
        rates = {key: entry.pop(key)[task] for key in ("lr", "adamw_lr")}
        shape = dict(race["shapes"][task])
        if task == "patches":
            source = self._images(w)
            preprocess = {**source.model["preprocess"], "n_patches": source.n_tokens}
            shape |= {"patch": source.model["patch"], "preprocess": preprocess}
            shape |= {"void_weight": source.model["void_weight"], "labels": source.config["labels"]}
        protocol = {key: race[name][key] for key in ("steps", "warmup", "seeds", "window")}
        own = {"task": task, "entry": entry, "rates": rates, "shape": shape, "sweep": name == "full"}
        return {"weight_decay": race["weight_decay"], **own, **protocol}
