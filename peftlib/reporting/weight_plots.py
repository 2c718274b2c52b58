"""Plots of how training changed the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftlib.reporting.figures import Plot, legend_below, look, new_figure, write_figure
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.plots import NoData, draw_all
from peftlib.reporting.weights import DamagedWeights, bias_changes, singular_values

_SHORT = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "attn. output", "attention.output.LayerNorm": "attn. norm",
    "intermediate.dense": "intermediate", "output.dense": "output", "output.LayerNorm": "output norm",
}  # fmt: skip


def draw_biases(comparison: Comparison, folder: Path, slug: str) -> Plot:
    """Draw how far BitFit moved the biases, by layer and kind of bias.

    Raises:
        NoData: there is no BitFit run, or its weights or the base model's cannot be read here.
    """
    variant = next((variant for variant in comparison.contenders() if variant.method == "bitfit"), None)
    if variant is None:
        raise NoData("Where the biases moved: there is no BitFit run.")
    try:
        changes = bias_changes(variant.runs[0])
    except DamagedWeights as error:
        raise NoData(f"Where the biases moved: {error}.") from error
    if changes is None:
        raise NoData(f"Where the biases moved: the weights of {comparison.model} are not on this machine.")
    layers = max(len(values) for values in changes.values())
    groups = [group for group in (*_SHORT, *changes) if len(changes.get(group, [])) == layers]
    groups = list(dict.fromkeys(groups))
    table = 1000 * np.array([changes[group] for group in groups]).T
    figure, axes = new_figure(plot_height=max(1.2, 0.3 * layers), below=0.85)
    axes.grid(False)
    image = axes.imshow(table, cmap="cividis", aspect="auto", vmin=0)
    for (row, column), value in np.ndenumerate(table):
        dark = value < 0.6 * table.max()
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=7, color="white" if dark else "black")
    axes.set_xticks(range(len(groups)), [_SHORT.get(group, group) for group in groups], rotation=40, ha="right")
    axes.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
    axes.set_ylabel("layer")
    figure.colorbar(image, label="mean |change| × 1000")
    caption = (
        f"{variant.label}, seed {variant.runs[0].seed}: mean absolute change of each bias vector × 1000. Softmax "
        "ignores a shift that is the same for all keys: key biases change by rounding errors, which AdamW scales up."
    )
    return write_figure(figure, folder, f"{slug}-bias-changes", "Where the biases moved", caption)


def draw_singular_values(comparison: Comparison, folder: Path, slug: str) -> Plot:
    """Draw how much of their rank the LoRA updates use.

    Raises:
        NoData: there is no LoRA adapter that has moved, or one is damaged.
    """
    figure, axes = new_figure()
    ranks = []
    for index, variant in enumerate(comparison.contenders()):
        try:
            values = singular_values(variant.runs[0]) if "lora_r" in variant.flags else None
        except DamagedWeights as error:
            raise NoData(f"Singular values of the LoRA updates: {error}.") from error
        if values is None:
            continue
        shares = values / values[:, :1]
        low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
        places = np.arange(1, shares.shape[1] + 1)
        style = look(index)
        axes.plot(places, middle, label=variant.label, markevery=max(1, len(places) // 8), **style)
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)
        energy = np.cumsum(values**2, axis=1) / (values**2).sum(axis=1, keepdims=True)
        needed = int(np.median((energy < 0.9).sum(axis=1) + 1))
        ranks.append(f"{variant.label}: {needed} of {shares.shape[1]}")
    if not ranks:
        raise NoData("Singular values of the LoRA updates: there is no LoRA adapter that training has changed.")
    axes.set(xlabel="singular value, largest first", ylabel="share of the largest", ylim=(0, 1.05))
    legend_below(figure, axes)
    caption = (
        "Lines: median over the layers of one seed. Bands: the middle half of the layers. Number of singular values "
        f"that make up 90 % of the update's squared norm: {'; '.join(ranks)}."
    )
    return write_figure(figure, folder, f"{slug}-singular-values", "Singular values of the LoRA updates", caption)


def draw_weights(comparison: Comparison, folder: Path, slug: str) -> tuple[list[Plot], list[str]]:
    """Draw both plots; return those with data, and a sentence for each without."""
    return draw_all(
        [lambda: draw_biases(comparison, folder, slug), lambda: draw_singular_values(comparison, folder, slug)]
    )
