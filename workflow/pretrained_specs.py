"""Specifications of the jobs on pretrained networks: which they are, and the texts that go through them."""

from collections.abc import Mapping
from typing import Any

from image_source import ImageSource
from network import PretrainedNetwork
from plan import Plan
from source import Wildcards
from text_source import TextSource


class PretrainedSpecs:
    """The part of ``Specs`` that is about pretrained networks and texts."""

    config: Mapping[str, Any]
    plan: Plan

    def _images(self, w: Wildcards) -> ImageSource:
        """The source of images that a job is about."""
        raise NotImplementedError

    def _texts(self, w: Wildcards) -> TextSource:
        """The source of texts that a job is about."""
        source = self.plan.sources[w["source"]]
        assert isinstance(source, TextSource)
        return source

    def pin_model(self, w: Wildcards) -> dict[str, Any]:
        """Which pretrained network, of which size, and how images go into it."""
        network = self._images(w).network
        assert isinstance(network, PretrainedNetwork)
        own = {key: network.config[key] for key in ("path", "revision", "blocks", "cls")}
        return {"model": {**own, "preprocess": network.preprocess, "shape": network.facts.shape()}}

    def pin_text_model(self, w: Wildcards) -> dict[str, Any]:
        """Which network, of which size, and how long sequences are."""
        source = self._texts(w)
        own = {key: source.model[key] for key in ("path", "revision", "blocks", "n_tokens", "bos")}
        return {"model": {**own, "shape": source.facts.shape()}}

    def list_texts(self, w: Wildcards) -> dict[str, Any]:
        """Which sequences of which file, and the names of labels."""
        source = self._texts(w)
        cut = source.config["splits"][w["split"]]
        sizes = {"first": cut["first"], "n_examples": cut["n_examples"]}
        own = {"texts": source.text(w["split"]), "classes": source.config["classes"]}
        sequence = {key: source.model[key] for key in ("n_tokens", "bos")}
        return {"seed": self.config["seed"], **w, **sizes, **own, **sequence}

    def label_texts(self, w: Wildcards) -> dict[str, Any]:
        """Whose labels they are."""
        return dict(w)
