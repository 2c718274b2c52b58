"""BitFit: train the biases, freeze the rest (Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftlib.errors import UserError, nearest
from peftlib.strategies.base import Strategy, names_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained

# The groups of the paper's own code, as endings of parameter names: of BERT and RoBERTa first, then of DistilBERT
# (q_lin, sa_layer_norm, …), DeBERTa v1 (q_bias) and later (query_proj), ALBERT (attention.query, ffn, …) and MPNet
# (attn.q). As there, `output` includes the bias of the projection after attention, and `output_layernorm` attention's
# LayerNorm. Key biases are listed for completeness: softmax ignores a shift that is the same for all keys, so their
# gradient is zero up to rounding and they hardly change.
BIAS_TERMS: dict[str, tuple[str, ...]] = {
    "query": (
        "self.query.bias", "attention.q_lin.bias", "self.q_bias", "self.query_proj.bias", "attention.query.bias",
        "attn.q.bias",
    ),
    "key": (
        "self.key.bias", "attention.k_lin.bias", "self.key_proj.bias", "attention.key.bias", "attn.k.bias",
    ),
    "value": (
        "self.value.bias", "attention.v_lin.bias", "self.v_bias", "self.value_proj.bias", "attention.value.bias",
        "attn.v.bias",
    ),
    "intermediate": ("intermediate.dense.bias", "ffn.lin1.bias", ".ffn.bias"),
    "output": (
        "output.dense.bias", "attention.out_lin.bias", "ffn.lin2.bias", "attention.dense.bias", "ffn_output.bias",
        "attn.o.bias",
    ),
    "attention_layernorm": ("attention.output.LayerNorm.bias", "sa_layer_norm.bias", "attention.LayerNorm.bias"),
    "output_layernorm": (
        "output.LayerNorm.bias", "sa_layer_norm.bias", "output_layer_norm.bias", "attention.LayerNorm.bias",
        "full_layer_layer_norm.bias",
    ),
    "all": (".bias", "_bias"),
}  # fmt: skip


@dataclass(frozen=True)
class BitFit(Strategy):
    """Train every bias of the encoder and, as in the paper (section 3), the new classification head."""

    _argument_group_name: ClassVar[str] = "--method bitfit"
    default_learning_rate: ClassVar[float] = 3e-3
    # A thousandth of the parameters underfits: it learns better without dropout (docs/results.md), and faster.
    default_dropout: ClassVar[float | None] = 0.0

    train_head: bool = field(
        default=True,
        metadata={
            "help": "bitfit: also train the classification head, as the paper does; false trains exactly the "
            "parameters whose name ends in 'bias'"
        },
    )
    bias_terms: str = field(
        default="all",
        metadata={
            "help": "bitfit: which biases to train, a comma-separated list of query, key, value, intermediate, "
            "output, attention_layernorm, output_layernorm, or all (the paper's subset is "
            "query,intermediate)"
        },
    )

    def __post_init__(self) -> None:
        terms = names_in(self.bias_terms)
        for term in terms:
            if term not in BIAS_TERMS:
                raise UserError(
                    f"--bias_terms {term}: no such group of biases{nearest(term, BIAS_TERMS)}; "
                    f"known: {', '.join(BIAS_TERMS)}"
                )
        if not terms:
            raise UserError(
                "--bias_terms is empty; leave it out for all biases, or give groups such as query,intermediate"
            )

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peftlib.strategies.adapter import smallest_linear
        from peftlib.strategies.parameters import train_only

        smallest_linear(model, head)  # fails before training if the result could not be saved
        # Endings, not substrings: T5's `relative_attention_bias.weight` is a weight.
        names = [name for name, _ in model.named_parameters()]
        groups = {
            term: {name for name in names if name.endswith(BIAS_TERMS[term])} for term in names_in(self.bias_terms)
        }
        # Checked one by one: otherwise a model without query biases would silently train `intermediate` alone. Those
        # before attention are not all of a layer's: ESM's other LayerNorm has no name of which one could tell.
        attention = {name for name in names if name.endswith(BIAS_TERMS["attention_layernorm"])}
        others = {"output_layernorm": head | attention}
        if missing := [term for term, biases in groups.items() if not biases - others.get(term, head)]:
            called = "" if "all" in missing else " under a known name"
            raise UserError(
                f"--method bitfit: {model.config.name_or_path} ({model.config.model_type}) has no bias terms "
                f"'{','.join(missing)}'{called} outside its head; try "
                + ("--method lora" if "all" in missing else "--bias_terms all")
            )
        biases = set().union(*groups.values())
        trains = biases | head if self.train_head else biases
        train_only(model, trains.__contains__)
        return model

    def _save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        from peftlib.strategies.adapter import save_as_adapter

        save_as_adapter(model, head, folder, bias="all")

    def load(self, model: PreTrainedModel, folder: Path) -> Trained:
        from peftlib.strategies.adapter import load_plain

        return load_plain(model, folder)
