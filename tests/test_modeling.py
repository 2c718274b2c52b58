"""Base models from a package, a folder or a Hub that is not there; heads, precision and pickles."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from peftlib.errors import UserError
from peftlib.fingerprint import Fingerprint
from peftlib.modeling import (
    DEFAULT_MODEL,
    ModelSource,
    find_model,
    hub_name_of_base,
    load_classifier,
    load_tokenizer,
    name_of_base,
)
from tests.conftest import tiny_config

LABELS = ("negative", "positive")


def complaint(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.startswith("--model_name_or_path")
    assert "\n" not in message
    return message


@pytest.fixture
def own_folder(tiny_folder, tmp_path):
    """A copy of the tiny BERT's folder, to be damaged."""
    return shutil.copytree(tiny_folder("bert"), tmp_path / "model")


def test_the_packaged_model_is_found_and_classifies():
    source = find_model(DEFAULT_MODEL)
    assert (Path(source.location) / "model.safetensors").is_file()
    tokenizer = load_tokenizer(source)
    model, head, _ = load_classifier(source, LABELS)
    assert tokenizer.tokenize("a film") == ["a", "film"]
    assert head == {"classifier.weight", "classifier.bias"}
    # BERT with 6 layers of width 384, and a new 2-class head.
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216 + 2 * 384 + 2


def test_a_folder_is_found_by_its_absolute_path(tiny_folder, monkeypatch):
    folder = tiny_folder("bert")
    monkeypatch.chdir(folder.parent)
    assert find_model(folder.name).location == str(folder.resolve())
    assert find_model(str(folder), trust_remote_code=True).trust_remote_code


def test_a_finished_run_s_base_model_is_where_its_folder_was(tiny_folder, monkeypatch, tmp_path):
    folder = tiny_folder("bert")
    monkeypatch.chdir(tmp_path)
    assert name_of_base({"name": folder.name, "location": str(folder)}) == str(folder)
    assert name_of_base({"name": "bert", "location": str(tmp_path / "gone")}) == "bert"
    assert name_of_base({"name": "bert-base-uncased", "location": "bert-base-uncased"}) == "bert-base-uncased"
    assert name_of_base({"name": DEFAULT_MODEL, "location": str(folder)}) == DEFAULT_MODEL  # of another environment
    assert name_of_base({"name": "some/model"}) == "some/model"


def test_the_hub_knows_packaged_models_and_its_own_and_no_folder(tmp_path):
    packaged = {"name": DEFAULT_MODEL, "location": str(tmp_path)}
    assert hub_name_of_base(packaged) == "sentence-transformers/all-MiniLM-L6-v2"
    for name in ("some/model", "bert-base-uncased"):
        assert hub_name_of_base({"name": name, "location": name}) == name
        assert hub_name_of_base({"name": name, "location": str(tmp_path / name)}) is None
    assert hub_name_of_base({"name": "some/model"}) == "some/model"  # records of old do not say where


def test_a_folder_without_a_model_is_an_error(tmp_path):
    assert complaint(find_model, str(tmp_path)).endswith("has no config.json; give a saved model's folder")
    (tmp_path / "adapter_config.json").touch()
    assert "has no config.json; scripts/export.py makes a model of this" in complaint(find_model, str(tmp_path))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/model", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    assert complaint(find_model, name).endswith("no such folder")


def test_an_unreachable_hub_names_both_ways_out_at_once():
    start = time.monotonic()
    message = complaint(find_model, "bert-base-uncased")
    assert "cannot be reached" in message
    assert "a folder that holds the model" in message
    assert f"--model_name_or_path {DEFAULT_MODEL} (packaged)" in message
    assert time.monotonic() - start < 10


def test_a_mistyped_packaged_model_is_recognised():
    assert f"did you mean {DEFAULT_MODEL}?" in complaint(find_model, "all-MiniLM-L6-v3")


def test_options_reach_from_pretrained():
    source = ModelSource("a/b", "a/b", "v1", trust_remote_code=True, cached_only=True)
    assert source.options() == {"revision": "v1", "trust_remote_code": True, "local_files_only": True}


HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {
        "classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias",
    },
    "distilbert": {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    "deberta": {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"},
}  # fmt: skip


@pytest.mark.parametrize("architecture", HEADS)
def test_the_head_is_what_the_encoder_does_not_have(architecture, tiny_folder):
    model, head, _ = load_classifier(find_model(str(tiny_folder(architecture))), LABELS)
    assert head == HEADS[architecture]
    assert head <= dict(model.named_parameters()).keys()


def test_a_saved_classifier_keeps_its_head_and_it_is_still_the_head(tiny_folder, tmp_path):
    model, head, _ = load_classifier(find_model(str(tiny_folder("distilbert"))), LABELS)
    model.save_pretrained(tmp_path)
    again, again_head, _ = load_classifier(find_model(str(tmp_path)), LABELS)
    assert again_head == head
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_a_pooler_that_the_checkpoint_lacks_belongs_to_the_head(own_folder):
    weights = load_file(own_folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, own_folder / "model.safetensors", {"format": "pt"})
    head = load_classifier(find_model(str(own_folder)), LABELS).head
    assert head == HEADS["bert"] | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_becomes_fp32_without_changing_its_values(dtype, tmp_path):
    encoder = AutoModel.from_config(tiny_config("bert")).to(dtype)
    encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    model = load_classifier(find_model(str(tmp_path)), LABELS).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, parameter in encoder.named_parameters():
        assert torch.equal(model.bert.get_parameter(name), parameter.float()), name


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_replaces_every_probability(architecture, dropout, tiny_folder):
    source = find_model(str(tiny_folder(architecture)))
    model = load_classifier(source, LABELS, dropout).model
    own = load_classifier(source, LABELS).model
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in modules} == {dropout}
    assert {module.p for module in own.modules() if isinstance(module, torch.nn.Dropout)} != {dropout}
    # With the head the same, a model without dropout computes in training what it does in evaluation.
    tokens = torch.arange(20, 32).view(2, 6)
    with torch.no_grad():
        trained, scored = (model.train(mode)(tokens).logits for mode in (True, False))
    assert torch.equal(trained, scored) == (dropout == 0.0)


def test_dropout_that_a_model_cannot_have_is_an_error(tiny_folder, monkeypatch):
    source = find_model(str(tiny_folder("bert")))
    monkeypatch.setattr("peftlib.modeling._set_dropout", lambda config, dropout: False)
    load_classifier(source, LABELS, 0.0)
    with pytest.raises(UserError, match=r"^--dropout 0.3: .* has no dropout in its configuration"):
        load_classifier(source, LABELS, 0.3)


def test_the_labels_are_the_tasks(tiny_folder):
    model = load_classifier(find_model(str(tiny_folder("bert"))), ("a", "b", "c")).model
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.classifier.out_features == 3


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def test_a_pickled_checkpoint_is_refused_and_never_unpickled(own_folder, tmp_path):
    mark = tmp_path / "unpickled"
    (own_folder / "model.safetensors").unlink()
    torch.save(Trap(mark), own_folder / "pytorch_model.bin")
    said = complaint(load_classifier, find_model(str(own_folder)), LABELS)
    assert said.endswith(
        "it has pickled weights alone; save it again with model.save_pretrained, which writes safetensors"
    )
    assert not mark.exists()
    torch.load(own_folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # the trap does work


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"no weights"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "nonsense"}'),
        ("config.json", b'{"model_type": "marian"}'),  # a model that does not classify
        ("config.json", b'{"model_type": "bert", "num_attention_heads": 0}'),
        ("config.json", b'{"model_type": "bert", "hidden_act": "nonsense"}'),
    ],
)
def test_what_cannot_be_loaded_as_a_classifier_is_one_line(own_folder, name, content):
    (own_folder / name).write_bytes(content)
    assert "cannot be loaded as a classifier" in complaint(load_classifier, find_model(str(own_folder)), LABELS)


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import no_such_package", "no_such_package"), ("class", "SyntaxError"), ("", "AttributeError")],
)
def test_remote_code_that_fails_is_one_line(own_folder, code, reason):
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (own_folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (own_folder / "own.py").write_text(code)
    said = complaint(load_classifier, find_model(str(own_folder), trust_remote_code=True), LABELS)
    assert "cannot be loaded as a classifier" in said and reason in said


@pytest.mark.parametrize("content", [b"{", b'{"a": 1}', b"[]"])
def test_a_damaged_tokenizer_is_one_line(own_folder, content):
    (own_folder / "tokenizer.json").write_bytes(content)
    assert "its tokenizer cannot be loaded" in complaint(load_tokenizer, find_model(str(own_folder)))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta"])
def test_a_folder_without_a_tokenizer_is_an_error_not_a_tokenizer_that_knows_no_words(
    architecture, tiny_folder, tmp_path
):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_folder(architecture) / name, tmp_path)
    assert "has no tokenizer" in complaint(load_tokenizer, find_model(str(tmp_path)))


def test_loading_is_silent(tiny_folder, capfd):
    load_classifier(find_model(str(tiny_folder("roberta"))), LABELS)
    assert capfd.readouterr() == ("", "")


def test_a_head_of_other_classes_is_said_in_words(tiny_folder, tmp_path):
    model = load_classifier(find_model(str(tiny_folder())), ("one", "two", "three")).model
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its head is not of 2 classes; give the model that it was made from"):
        load_classifier(find_model(str(tmp_path)), ("no", "yes"))


def test_of_any_number_of_classes_pipelines_compute_sigmoids(tiny_folder, tmp_path):
    source = find_model(str(tiny_folder()))
    model = load_classifier(source, ("no", "yes"), problem_type="multi_label_classification").model
    assert model.config.problem_type == "multi_label_classification"
    model.save_pretrained(tmp_path)
    again = load_classifier(find_model(str(tmp_path)), ("no", "yes")).model  # not what the checkpoint was
    assert again.config.problem_type == "single_label_classification"


def test_without_classes_there_is_one_output_a_score(tiny_folder, own_folder, tmp_path):
    model, _, new = load_classifier(find_model(str(tiny_folder())), ())
    assert model.classifier.weight.shape == (1, 32) and "classifier.bias" in new
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    model.save_pretrained(tmp_path)
    again, _, new = load_classifier(find_model(str(tmp_path)), ())
    assert not new and torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(UserError, match="its head is not of 2 classes"):
        load_classifier(find_model(str(tmp_path)), ("no", "yes"))
    load_classifier(find_model(str(tiny_folder())), ("no", "yes")).model.save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="its head is not of one output; give the model that it was made from"):
        load_classifier(find_model(str(tmp_path / "two")), ())


def test_a_decoder_without_a_padding_token_takes_its_tokenizers(tiny_folder, tmp_path):
    config = AutoConfig.for_model("gpt2", vocab_size=30522, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    assert config.pad_token_id is None
    AutoModel.from_config(config).save_pretrained(tmp_path)
    for file in tiny_folder().glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    source = find_model(str(tmp_path))
    model = load_classifier(source, ("no", "yes")).model
    assert model.config.pad_token_id == load_tokenizer(source).pad_token_id == 0
    given = {"input_ids": torch.tensor([[5, 6, 0], [5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert model(**given).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("architecture", "positions"), [("bert", 140), ("roberta", 139), ("deberta", 140), ("luke", 139)]
)
def test_what_its_embeddings_do_not_have_is_refused(tiny_folder, architecture, positions):
    """RoBERTa's padding, token 0 here, takes the first position."""
    source = find_model(str(tiny_folder(architecture)))
    model = load_classifier(source, LABELS, extent=(30521, positions)).model
    longest = torch.full((1, positions), 30521)
    model.eval()(input_ids=longest)
    with pytest.raises(IndexError):
        model(input_ids=longest + 1)
    message = complaint(lambda: load_classifier(source, LABELS, extent=(30522, positions)))
    assert "token id 30522, and the model has embeddings for 30,522; resize them" in message
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, positions + 1), 5))
    with pytest.raises(UserError, match=f"^--max_length must be at most {positions}: .* has 500 tokens$"):
        load_classifier(source, LABELS, extent=(5, 500))
    load_classifier(source, LABELS, extent=(5, positions - 20), virtual_tokens=20)
    expected = (
        f"^--max_length must be at most {positions - 20}: .* has {positions} positions, 20 of which virtual tokens "
    )
    with pytest.raises(UserError, match=expected):
        load_classifier(source, LABELS, extent=(5, positions - 19), virtual_tokens=20)
    expected = f"^--peft_kwargs: num_virtual_tokens is {positions}, and .* has {positions} positions .* use fewer$"
    with pytest.raises(UserError, match=expected):
        load_classifier(source, LABELS, extent=(5, 3), virtual_tokens=positions)


@pytest.mark.parametrize("architecture", ["modernbert", "funnel"])
def test_relative_positions_have_no_end(tiny_folder, architecture):
    load_classifier(find_model(str(tiny_folder(architecture))), LABELS, extent=(5, 500))


def test_the_fingerprint_is_of_the_weights_alone(tiny_folder, own_folder):
    """Not of the head, which is drawn anew, nor of their file's names and precision."""

    def print_of(folder):
        loaded = load_classifier(find_model(str(folder)), LABELS)
        return Fingerprint.of(loaded.model, loaded.new)

    torch.manual_seed(1)
    expected = print_of(tiny_folder("bert"))
    torch.manual_seed(2)
    assert print_of(own_folder) == expected
    weights = load_file(own_folder / "model.safetensors")
    renamed = {f"bert.{name}": value.double() for name, value in weights.items()}
    save_file(renamed, own_folder / "model.safetensors", metadata={"format": "pt"})
    assert print_of(own_folder) == expected
    renamed["bert.encoder.layer.1.output.dense.bias"][0] += 1
    save_file(renamed, own_folder / "model.safetensors", metadata={"format": "pt"})
    assert print_of(own_folder) != expected


def test_the_fingerprint_is_of_a_head_that_came_along_and_of_the_architecture(tiny_folder, tmp_path):
    """Biases that were trained under another head, or with other attention heads, mean something else."""
    torch.manual_seed(1)
    model, head, new = load_classifier(find_model(str(tiny_folder("bert"))), LABELS)
    assert new == head and "classifier.weight" in head
    prints = []
    for shift in (0, 1):
        model.classifier.bias.data += shift
        model.save_pretrained(tmp_path / "whole")
        load_tokenizer(find_model(str(tiny_folder("bert")))).save_pretrained(tmp_path / "whole")
        whole, brought, new = load_classifier(find_model(str(tmp_path / "whole")), LABELS)
        assert "classifier.weight" in brought and not new
        prints.append(Fingerprint.of(whole, new))
    assert prints[0].weights != prints[1].weights and prints[0].configuration == prints[1].configuration
    dropped = load_classifier(find_model(str(tmp_path / "whole")), LABELS, dropout=0.3)
    assert Fingerprint.of(dropped.model, dropped.new) == prints[1]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    config["num_attention_heads"] *= 2
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    changed = load_classifier(find_model(str(tmp_path / "whole")), LABELS)
    other = Fingerprint.of(changed.model, changed.new)
    assert other.weights == prints[1].weights and other.configuration != prints[1].configuration


@pytest.mark.parametrize("lost", ["encoder.layer.1.", ""])
def test_a_checkpoint_that_lacks_weights_of_the_encoder_is_refused(own_folder, lost):
    """They would be trained as a part of the head, or stay random; a name that DDP has put a prefix on is lost too."""
    weights = load_file(own_folder / "model.safetensors")
    if lost:
        kept = {name: value for name, value in weights.items() if lost not in name}
    else:
        kept = {f"module.{name}": value for name, value in weights.items()}
    assert kept.keys() != weights.keys()
    save_file(kept, own_folder / "model.safetensors", metadata={"format": "pt"})
    message = complaint(load_classifier, find_model(str(own_folder)), LABELS)
    assert "weights are missing" in message and "are missing (bert." in message


def test_pipelines_take_a_softmax_whatever_the_checkpoint_was_for(own_folder, tmp_path):
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    model = load_classifier(find_model(str(own_folder)), LABELS).model
    assert model.config.problem_type == "single_label_classification"


# ── What the model's own configuration says ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("brought", "labels", "said"),
    [
        (("no", "yes"), ("no", "yes"), None),
        (("NO", "YES"), ("no", "yes"), None),
        (("yes", "no"), ("no", "yes"), "was made for the classes yes, no; here they are no, yes"),
        (("a", "b"), ("no", "yes"), "was made for the classes a, b; here they are no, yes"),
        (("LABEL_0", "LABEL_1"), ("no", "yes"), None),
    ],
)
def test_a_head_of_other_classes_or_another_order_is_pointed_out(tiny_folder, tmp_path, brought, labels, said):
    """Its rows would otherwise begin as another class's, without a word."""
    load_classifier(find_model(str(tiny_folder())), brought).model.save_pretrained(tmp_path)
    lines: list[str] = []
    load_classifier(find_model(str(tmp_path)), labels, warn=lines.append)
    assert [line.partition(" brings ")[0] for line in lines] == (["the head that " + str(tmp_path)] if said else [])
    assert all(line.endswith(said) for line in lines)


def test_a_new_head_has_no_classes_yet(tiny_folder, own_folder):
    config = json.loads((own_folder / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (own_folder / "config.json").write_text(json.dumps(config))
    load_classifier(find_model(str(own_folder)), LABELS, warn=pytest.fail)


def test_a_model_that_reads_padding_is_pointed_out_unless_all_are_padded_alike(tiny_folder, tmp_path):
    config = AutoConfig.for_model(
        "fnet", vocab_size=30522, hidden_size=32, num_hidden_layers=1, intermediate_size=64, type_vocab_size=2
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    source, lines = find_model(str(tmp_path)), []
    model = load_classifier(source, LABELS, pads_alike=False, warn=lines.append).model.eval()
    assert len(lines) == 1 and "transformers' fnet reads padding too" in lines[0]
    load_classifier(source, LABELS, warn=pytest.fail)
    load_classifier(find_model(str(tiny_folder())), LABELS, pads_alike=False, warn=pytest.fail)
    with torch.no_grad():  # should transformers mend it, the warning has to go
        short, long = (model(input_ids=torch.tensor([[5, 6, 7, *[0] * padding]])).logits for padding in (0, 4))
    assert not torch.allclose(short, long)


@pytest.mark.parametrize(("types", "given"), [(1, False), (2, True)])
def test_a_model_with_one_token_type_is_given_none(tiny_folder, own_folder, tmp_path, types, given):
    """BERT's tokenizer gives pairs two, and a model of one type fails on the second; what is saved does not, either."""
    config = json.loads((own_folder / "config.json").read_text()) | {"type_vocab_size": types}
    (own_folder / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(find_model(str(own_folder)))
    assert ("token_type_ids" in tokenizer("one", "two")) == given
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "saved")("one", "two")) == given


def test_an_adapter_s_tokenizer_pads_as_its_model_does(tiny_folder, tmp_path):
    """Its folder has no configuration; XLNet's classifier reads the last position."""
    tokenizer = load_tokenizer(find_model(str(tiny_folder("xlnet"))))
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSource(str(tmp_path), str(tmp_path))).padding_side == "left"


def test_a_nystromformer_of_a_fixed_length_is_told_it(tiny_folder, tmp_path):
    config = AutoConfig.for_model(
        "nystromformer", vocab_size=30522, hidden_size=32, num_hidden_layers=1, intermediate_size=64,
        num_attention_heads=4, num_landmarks=4, segment_means_seq_len=16,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    source = find_model(str(tmp_path))
    for extent, alike in (((9, 16), False), ((9, 12), True)):
        with pytest.raises(UserError, match=r"inputs of 16 tokens only; use --max_length 16 --pad_to_max_length$"):
            load_classifier(source, LABELS, extent=extent, pads_alike=alike)
    model = load_classifier(source, LABELS, extent=(9, 16), pads_alike=True).model
    assert model(input_ids=torch.full((2, 16), 5)).logits.shape == (2, len(LABELS))
    with pytest.raises(RuntimeError):  # should transformers mend it, the refusal has to go
        model(input_ids=torch.full((2, 12), 5))
    # As many landmarks as tokens: attention is the plain one, for any length.
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | {"num_landmarks": 16}))
    model = load_classifier(source, LABELS, extent=(9, 12), pads_alike=False).model
    assert model(input_ids=torch.full((2, 12), 5)).logits.shape == (2, len(LABELS))
