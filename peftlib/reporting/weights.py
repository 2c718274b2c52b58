"""How training changed the weights, read from the saved adapters without building a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from peftlib.errors import UserError
from peftlib.modeling import PACKAGED_MODELS, find_model, name_of_base
from peftlib.reporting.runs import Run
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_LAYER = re.compile(r"layers?\.(\d+)\.(.+)[._]bias$")
_A_MATRIX, _B_MATRIX = ".lora_A.weight", ".lora_B.weight"


class DamagedWeights(Exception):
    """A weights file is damaged; the message says which one, and how."""


def bias_changes(run: Run) -> dict[str, list[float]] | None:
    """Return how far a run moved its biases: group -> mean absolute change of each layer, in layer order.

    Returns:
        None if the run has no adapter with biases, or its base model's weights are not on this machine.

    Raises:
        DamagedWeights: one of the two files is damaged.
    """
    base = base_weights(run)
    adapter = run.folder / ADAPTER_WEIGHTS
    if base is None or not adapter.exists():
        return None
    before = {_plain(name): value for name, value in _biases(base).items()}
    changes: dict[str, dict[int, float]] = {}
    for name, value in _biases(adapter).items():
        place = _LAYER.search(_plain(name))
        start = before.get(_plain(name))
        if place is not None and start is not None and start.shape == value.shape:
            changes.setdefault(place[2], {})[int(place[1])] = float(np.abs(value - start).mean())
    return {group: [layers[layer] for layer in sorted(layers)] for group, layers in changes.items()} or None


def base_weights(run: Run) -> Path | None:
    """Find the safetensors file of the run's base model: packaged, in a folder, or in the Hub's cache.

    Returns:
        None if it is not on this machine; nothing is downloaded.
    """
    name = name_of_base(run.record["model"])
    if name in PACKAGED_MODELS or Path(name).is_dir():
        try:
            file = Path(find_model(name).location) / "model.safetensors"
        except UserError:  # the package is not installed here, or the folder holds no such model
            return None
        return file if file.exists() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "model.safetensors", revision=run.arguments.get("model_revision"))
    except HFValidationError:  # the path of a folder on another machine
        return None
    return Path(cached) if isinstance(cached, str) else None


def singular_values(run: Run) -> np.ndarray | None:
    """Compute the singular values of the run's LoRA updates s B A, in descending order.

    Modules whose B is still zero, its initial value, are left out.

    Returns:
        Shape (modules, rank); None if there are no such updates.

    Raises:
        DamagedWeights: the adapter is damaged.
    """
    adapter, settings = run.folder / ADAPTER_WEIGHTS, run.folder / ADAPTER_CONFIG
    if not adapter.exists() or not settings.exists():
        return None
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        rank, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError) as error:
        raise DamagedWeights(f"{settings} cannot be read ({error})") from error
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    found = []
    matrices = _tensors(adapter, (_A_MATRIX, _B_MATRIX))
    for name, a in matrices.items():
        b = matrices.get(name.replace(_A_MATRIX, _B_MATRIX))
        if name.endswith(_A_MATRIX) and b is not None and b.any():
            # Decompose the r x r product of the two QR triangles; B A itself is as large as the layer.
            triangles = np.linalg.qr(b).R @ np.linalg.qr(a.T).R.T
            found.append(scale * np.linalg.svd(triangles, compute_uv=False))
    # A layer narrower than the rank has fewer singular values.
    return np.array([np.pad(values, (0, rank - len(values))) for values in found]) if found else None


def _biases(path: Path) -> dict[str, np.ndarray]:
    return _tensors(path, (".bias", "_bias", ".beta"))


def _tensors(path: Path, endings: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The file's tensors whose names end in one of `endings`, as NumPy floats.

    Raises:
        DamagedWeights: the file is damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            names = [name for name in file.keys() if name.endswith(endings)]  # noqa: SIM118 # no dict
            try:
                return {name: file.get_tensor(name) for name in names}
            except TypeError:  # NumPy has no bfloat16; torch has, but takes seconds to import
                pass
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in names}
    except (OSError, SafetensorError) as error:
        raise DamagedWeights(f"{path} cannot be read ({error})") from error


def _plain(name: str) -> str:
    """A bias's name from its layer on, without wrappers; the first BERT checkpoints call LayerNorm's bias `beta`."""
    inner = name.replace(".base_layer.", ".").replace("LayerNorm.beta", "LayerNorm.bias")
    match = re.search(r"\blayers?\.\d+\..*", inner)
    return match[0] if match else inner
