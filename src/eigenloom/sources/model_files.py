"""A pretrained vision transformer on disk: where its files are, and what they say before anything is loaded.

Standard library only, and ``huggingface_hub`` where a hub id is looked up in its cache: plans read these facts too.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from eigenloom.errors import ConfigError, StoreError
from eigenloom.provenance import canonical_json, file_digest, text_digest
from eigenloom.store.atomic import read_json

FAMILIES = {
    "dinov3_vit": "dinov3", "dinov2": "dinov2", "dinov2_with_registers": "dinov2", "clip": "clip",
    "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip",
}  # fmt: skip
"""``model_type`` of a ``config.json`` -> the word that the shard protocol has for it; any other has none."""
ANY_GRID = ("dinov3_vit", "dinov2", "dinov2_with_registers")
"""Networks that take any grid of patches: rotary positions, or learned ones that they interpolate themselves."""
WITHOUT_CLS = ("ijepa", "siglip", "siglip_vision_model")
REFUSED = {
    "vit_mae": "its forward pass shuffles patches and drops most of them",
    "siglip2": "it takes lists of patches instead of images",
    "siglip2_vision_model": "it takes lists of patches instead of images",
}
NESTED_DEFAULTS = {
    "clip": {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224},
    "siglip": {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224},
}
"""What a checkpoint of two towers may leave unsaid of its vision tower, which is the class's default."""
TEXT_KEYS = (
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("max_position_embeddings", "n_positions"),
)
"""Names of width, depth and the longest sequence in the configurations of text transformers."""
WANTED = [
    "config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json",
    "special_tokens_map.json", "vocab.*", "merges.txt",
]  # fmt: skip
INSTALL = "install it with `make models`, or `pip install '.[models]'`"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelFacts:
    """What the JSON files of a checkpoint say.

    Fields: ``architecture`` is its ``model_type``; ``width`` the length of a row; ``depth`` the number of blocks;
    ``patch`` pixels per patch side; ``has_cls`` whether token 0 is a CLS token; ``n_patches`` patches of the images it
    was made for, None where nothing says; ``mean`` and ``std`` per channel, None likewise.
    """

    architecture: str
    width: int
    depth: int
    patch: int
    has_cls: bool
    n_patches: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def family(self) -> str:
        """The word of the shard protocol."""
        return FAMILIES.get(self.architecture, "fake-clip")

    @property
    def takes_any_grid(self) -> bool:
        """Whether images of other sizes than those it was made for can go in."""
        return self.architecture in ANY_GRID

    def shape(self) -> dict[str, Any]:
        """Return what a network's size is: JSON values, without the preprocessing."""
        return {k: v for k, v in asdict(self).items() if k not in ("n_patches", "mean", "std")}


def has_cls(architecture: str, stated: bool | None = None) -> bool:
    """Say whether token 0 is a CLS token: as stated, else as the architecture has it."""
    return architecture not in WITHOUT_CLS if stated is None else stated


def is_hub_id(path: str) -> bool:
    """Say whether a path means a model on the hub: two names, with no such folder, and not ``data/...``."""
    return bool(HUB_ID.fullmatch(path)) and not path.startswith("data/") and not Path(path).is_dir()


def locate(path: str, revision: str | None = None, *, download: bool = False) -> tuple[Path, str | None]:
    """Find the folder of a model.

    Args:
        path: a folder, or a hub id such as ``facebook/dinov2-base``, which is looked up in the Hugging Face cache.
        revision: branch, tag or commit of a hub id; None means ``main``.
        download: fetch a hub id that the cache lacks.

    Returns:
        The folder, and the commit it holds; None where the folder is the user's own.

    Raises:
        StoreError: no such folder; not in the cache; refused by the hub, where DINOv3's licence is named.
        ConfigError: a hub id without ``huggingface_hub``.
    """
    if not is_hub_id(path):
        if not Path(path).is_dir():
            raise StoreError(f"{path}: no such folder; link it there, or give a hub id (OWNER/NAME)")
        return Path(path), None
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(f"{path}: a hub id needs huggingface_hub; {INSTALL}") from None
    try:
        found = Path(hub.snapshot_download(path, revision=revision, local_files_only=True, allow_patterns=WANTED))
        if not download or (found / "config.json").is_file():
            return found, found.name
    except (OSError, ValueError) as error:
        if not download:
            at = f" at revision {revision}" if revision else ""
            raise StoreError(
                f"{path}{at} is not in the Hugging Face cache ({type(error).__name__}); fetch it with `hf download"
                f" {path}`, set `download: true`, or set `path` to a folder that holds it"
            ) from None
    try:
        found = Path(hub.snapshot_download(path, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # the library and its transport raise many types of their own
        raise StoreError(_refusal(path, error)) from None
    return found, found.name


def _refusal(path: str, error: Exception) -> str:
    """Say why a download failed and what helps."""
    reason = " ".join(str(error).split())[:200]
    words = f"{path}: could not be downloaded ({type(error).__name__}: {reason})"
    if "dinov3" in path.lower() or type(error).__name__ == "GatedRepoError":
        words += (
            "; it sits behind a licence (DINOv3's is one): accept it on the model's page and run `hf auth login`, or"
            " download the files elsewhere"
        )
    return f"{words}; `path` may be a local folder with config.json, preprocessor_config.json and *.safetensors"


def read_facts(directory: str | Path, cls: bool | None = None) -> ModelFacts:
    """Read ``config.json`` and ``preprocessor_config.json`` of a vision transformer.

    Args:
        directory: of the model.
        cls: whether token 0 is a CLS token, where the architecture does not tell.

    Raises:
        StoreError: no ``config.json``, or a damaged file.
        ConfigError: a network that cannot be recorded, that needs code of its own, or that is no vision transformer.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise StoreError(f"{directory}: holds no config.json; download the whole model there")
    config = read_json(path)
    architecture = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(architecture, str):
        raise ConfigError(f"{path}: names no model_type; only models of the transformers library can be recorded")
    if architecture in REFUSED:
        raise ConfigError(f"{path}: {architecture} cannot be recorded: {REFUSED[architecture]}")
    tower = {**NESTED_DEFAULTS.get(architecture, {}), **config.get("vision_config", {})}
    stated = tower if architecture in NESTED_DEFAULTS else config
    numbers = {key: _side(stated.get(key)) for key in ("hidden_size", "num_hidden_layers", "patch_size")}
    if missing := [key for key, number in numbers.items() if number is None]:
        custom = "; it needs code of its own, which is never run" if "auto_map" in config else ""
        raise ConfigError(
            f"{path}: {architecture} states no {', '.join(missing)}, so it is no vision transformer{custom}"
        )
    width, depth, patch = (numbers[key] or 0 for key in ("hidden_size", "num_hidden_layers", "patch_size"))
    side, mean, std = _preprocessing(directory)
    side = side or _side(stated.get("image_size"))
    n_patches = (side // patch) ** 2 if side else None
    if architecture not in ANY_GRID and (learned := _side(stated.get("image_size"))):
        n_patches = (learned // patch) ** 2
    return ModelFacts(architecture, width, depth, patch, has_cls(architecture, cls), n_patches, mean, std)


@dataclass(frozen=True)
class TextFacts:
    """What ``config.json`` says of a text transformer; ``max_tokens`` is None where nothing bounds a sequence."""

    architecture: str
    width: int
    depth: int
    max_tokens: int | None = None

    def shape(self) -> dict[str, Any]:
        """Return the size as JSON values."""
        return {k: v for k, v in asdict(self).items() if k != "max_tokens"}


def read_text_facts(directory: str | Path) -> TextFacts:
    """Read ``config.json`` of a text transformer.

    Raises:
        StoreError: no ``config.json``, or a damaged file.
        ConfigError: it states no size.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise StoreError(f"{directory}: holds no config.json; download the whole model there")
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{path}: names no model_type; only models of the transformers library can be recorded")
    sizes = [next((n for key in names if (n := _side(config.get(key)))), None) for names in TEXT_KEYS]
    if sizes[0] is None or sizes[1] is None:
        raise ConfigError(f"{path}: {config['model_type']} states neither width nor depth under a known name")
    return TextFacts(config["model_type"], sizes[0], sizes[1], sizes[2])


def _preprocessing(directory: Path) -> tuple[int | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return side of the image, mean and deviation per channel, as ``preprocessor_config.json`` has them."""
    path = directory / "preprocessor_config.json"
    if not path.exists():
        return None, None, None
    stated = read_json(path)
    if not isinstance(stated, dict):
        raise ConfigError(f"{path}: is no JSON object; take the model's own file")
    if abs(255 * stated.get("rescale_factor", 1 / 255) - 1) > 1e-3:
        raise ConfigError(f"{path}: rescale_factor {stated['rescale_factor']} is not 1/255, the only scale supported")
    side = _side(stated.get("crop_size") if stated.get("do_center_crop") else None) or _side(stated.get("size"))
    if not stated.get("do_normalize", True):
        return side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (tuple(stated[key]) if key in stated else None for key in ("image_mean", "image_std"))
    return side, mean, std


def _side(value: Any) -> int | None:
    """Read a size: a number, a pair of equal ones, or a mapping; None where it is none of these."""
    if isinstance(value, dict):
        sides = {value[key] for key in ("height", "width", "shortest_edge") if key in value}
        value = next(iter(sides)) if len(sides) == 1 else None
    elif isinstance(value, list):
        value = value[0] if value and len(set(map(str, value))) == 1 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def weight_files(directory: Path) -> list[str]:
    """Name the safetensors files of a checkpoint, sorted.

    Raises:
        StoreError: there are none, whatever else there is; an adapter, whose weights lie elsewhere; an index that names
            files it must not.
    """
    if (directory / "adapter_config.json").exists():
        raise StoreError(
            f"{directory}: holds an adapter; merge it into its model (peft's `merge_and_unload`) and save that"
        )
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise StoreError(
            f"{directory}: holds no model.safetensors, but {found}; pickled weights are never read: convert them with"
            " transformers (`save_pretrained`) elsewhere"
        )
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(name)) for name in names):
        raise StoreError(f"{index}: lists no safetensors files of this folder; take the model's own index")
    return names


def file_facts(directory: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and sha256 of the files that decide what a network computes.

    Raises:
        StoreError: weights are missing.
    """
    names = ["config.json", *weight_files(directory)]
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise StoreError(f"{directory}: {', '.join(missing)} missing; download the whole model")
    paths = {name: directory / name for name in names}
    return {name: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for name, p in paths.items()}


def weights_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sha256 of the weights: that of the only file, or of the list of them."""
    digests = {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}
    return next(iter(digests.values())) if len(digests) == 1 else text_digest(canonical_json(digests))
