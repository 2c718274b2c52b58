"""Micro-batches: padded as the tokenizer pads, or in rows that hold the same tokens, each once, in few shapes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.data.batching import Slot
from peftlib.data.collation import STEP, WIDTH_STEP, WIDTHS, Collator, RowCollator, Targets, rows_for, split_inputs
from peftlib.data.encoding import Chosen, encode
from peftlib.errors import UserError
from peftlib.modeling import find_model, load_classifier, load_tokenizer
from tests.data.texts import PAIRS, ROWS, examples_of, rows_of

PADDED = Collator({"input_ids": 0, "token_type_ids": 0})


def chosen(lengths, seed=0):
    """Examples with tokens that differ."""
    generator, count = np.random.default_rng(seed), sum(lengths)
    columns = {"input_ids": generator.integers(1, 1000, count), "token_type_ids": generator.integers(0, 2, count)}
    examples = np.arange(len(lengths))
    return Chosen(
        {name: column.astype(np.int32) for name, column in columns.items()}, np.array(lengths), examples % 2,
        examples + 100, np.full(len(lengths), 1 / len(lengths), dtype=np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["sentences", "pairs"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "xlnet"])
def test_a_batch_is_padded_as_the_tokenizer_pads(architecture, rows, tiny_folder, cache):
    tokenizer = load_tokenizer(find_model(str(tiny_folder(architecture))))
    encoded = encode(examples_of(rows), tokenizer, 16)
    order = [len(rows) - 1, 0, 1]
    batch = Collator.for_tokenizer(tokenizer)(encoded.__getitems__([Slot(place, 0.25) for place in order]))
    columns = rows_of(encoded)
    expected = tokenizer.pad({name: [ids[p] for p in order] for name, ids in columns.items()}, return_tensors="pt")
    inputs, targets = split_inputs(batch)
    assert inputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(inputs[name], tensor), name
        assert inputs[name].dtype == torch.int64
    assert targets.labels.tolist() == [rows[place][1] for place in order]
    assert targets.example.tolist() == order
    assert targets.weight.tolist() == [0.25] * 3
    assert batch.keys() == inputs.keys() | set(Targets._fields)


@pytest.mark.parametrize("pad_to", [0, 16])
@pytest.mark.parametrize("side", ["left", "right"])  # as it was saved; XLNet's class says left, and BERT's right
@pytest.mark.parametrize("architecture", ["xlnet", "bert"])
def test_padding_changes_no_answer(architecture, side, pad_to, tiny_folder, cache, tmp_path):
    """XLNet's classifier reads the last position, BERT's the first."""
    folder = shutil.copytree(tiny_folder(architecture), tmp_path / "model")
    saved = load_tokenizer(find_model(str(folder)))
    saved.padding_side = side
    saved.save_pretrained(folder)
    source = find_model(str(folder))
    tokenizer, model = load_tokenizer(source), load_classifier(source, ("no", "yes")).model.eval()
    encoded = encode(examples_of(ROWS), tokenizer, 16)
    collator, slots = Collator.for_tokenizer(tokenizer, pad_to, 16), [Slot(place, 0.0) for place in range(len(ROWS))]
    batches = [slots, *([slot] for slot in slots)]
    together, *alone = (split_inputs(collator(encoded.__getitems__(batch)))[0] for batch in batches)
    assert int(together["attention_mask"].sum()) < together["attention_mask"].numel()
    with torch.inference_mode():
        expected = torch.cat([model(**inputs).logits for inputs in alone])
        torch.testing.assert_close(model(**together).logits, expected, rtol=0, atol=1e-6)
        if not pad_to:  # then what is alone has at most three fillers
            bare = [tokenizer(*text, return_tensors="pt", truncation=True, max_length=16) for text, _ in ROWS]
            torch.testing.assert_close(expected, torch.cat([model(**x).logits for x in bare]), rtol=0, atol=1e-6)


def test_padding_goes_to_a_fixed_length_where_one_is_asked_for(tokenizer, cache):
    encoded = encode(examples_of(ROWS), tokenizer, 16)
    whole = encoded.__getitems__([Slot(place, 1.0) for place in range(len(encoded))])
    batch = Collator.for_tokenizer(tokenizer, pad_to=32)(whole)
    expected = tokenizer.pad(
        {"input_ids": rows_of(encoded)["input_ids"]}, padding="max_length", max_length=32, return_tensors="pt"
    )
    assert batch["input_ids"].shape == (len(ROWS), 32)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    # Never shorter than the longest example.
    assert Collator.for_tokenizer(tokenizer, pad_to=4)(whole)["input_ids"].shape == (len(ROWS), 16)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), more=st.integers(0, 40))
def test_widths_are_few_and_never_beyond_the_longest_example_there_is(lengths, more):
    """A model with positions for the longest example, and for no token more, still takes every batch."""
    longest, widest = max(lengths), max(lengths) + more
    batch = Collator({"input_ids": 0}, widest=widest)(chosen(lengths))
    width = batch["input_ids"].size(1)
    assert longest <= width <= widest and width < longest + WIDTH_STEP
    assert width % WIDTH_STEP == 0 or width == widest
    assert batch["attention_mask"].sum(1).tolist() == lengths


def test_the_pad_values_are_the_tokenizers(tokenizer):
    tokenizer.pad_token = "[MASK]"
    batch = Collator.for_tokenizer(tokenizer)(chosen([3, 1]))
    assert batch["input_ids"][1, 1:].tolist() == [tokenizer.mask_token_id] * 2


def test_a_tokenizer_that_cannot_pad_is_refused(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        Collator.for_tokenizer(tokenizer)


@settings(max_examples=60)
@given(st.lists(st.integers(1, WIDTHS[-1]), min_size=1, max_size=70), st.sampled_from([0, 2]))
def test_every_token_has_one_row_and_every_row_an_example(lengths, first_position):
    padded, laid = PADDED(chosen(lengths)), PADDED.in_rows(first_position)(chosen(lengths))
    places, count = laid["attention_mask"], laid["input_ids"].size(1)
    examples, width = places.size(0), places.size(3)
    assert laid.keys() == {*padded, "position_ids"}
    assert all(laid[name].dtype == tensor.dtype for name, tensor in padded.items() if name != "attention_mask")
    assert places.shape == (examples, 1, 1, width) and places.dtype == torch.int32
    assert torch.equal(places[places >= 0].sort().values, torch.arange(count, dtype=torch.int32))
    assert (places[:, 0, 0, 0] >= 0).all(), "an example without a first token has nothing to score"
    for number, length in enumerate(lengths):
        rows = places[number, 0, 0]
        assert (rows[length:] == -1).all()
        for name in ("input_ids", "token_type_ids"):
            assert torch.equal(laid[name][0, rows[:length].long()], padded[name][number, :length])
        assert torch.equal(laid["position_ids"][0, rows[:length].long()], torch.arange(length) + first_position)
    for name in ("labels", "example", "weight"):
        assert laid[name].shape == (examples,)
        assert torch.equal(laid[name][: len(lengths)], padded[name])
        assert not laid[name][len(lengths) :].any(), "fillers count nothing"
    assert laid["position_ids"].min() >= first_position and laid["position_ids"].max() < first_position + width
    tokens = sum(lengths)
    assert tokens < count <= tokens + 2 * max(STEP, tokens / 8)
    assert width >= max(lengths) and width in WIDTHS


def test_scores_are_laid_out_as_scores():
    given = chosen([9, 4, 30])._replace(labels=np.array([0.5, 5.0, 3.8], dtype=np.float32))
    for collator in (PADDED, PADDED.in_rows(0)):
        labels = split_inputs(collator(given))[1].labels
        assert labels.dtype == torch.float32
        assert torch.equal(labels[:3], torch.tensor([0.5, 5.0, 3.8])) and not labels[3:].any()


def test_labels_of_any_number_of_classes_are_rows():
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    given = chosen([9, 4, 30])._replace(labels=labels)
    for collator in (PADDED, PADDED.in_rows(0)):
        targets = split_inputs(collator(given))[1]
        assert targets.labels.dtype == torch.int64 and not targets.are_classes
        assert torch.equal(targets.labels[:3], torch.from_numpy(labels)) and not targets.labels[3:].any()


def test_fillers_take_what_is_left_over():
    """Of any number of tokens: of one row at least, and of the width at most."""
    for tokens in [*range(1, 40_000), *range(70_000, 80_000), *range(290_000, 300_000)]:
        for width in WIDTHS:
            count, fillers = rows_for(tokens, width)
            assert fillers <= count - tokens <= fillers * width, (tokens, width)


def test_shapes_are_few():
    generator = np.random.default_rng(1)
    batches = [RowCollator(PADDED, 0)(chosen(generator.integers(20, 60, 64))) for _ in range(300)]
    assert len({tuple((name, tensor.shape) for name, tensor in batch.items()) for batch in batches}) <= 4


def test_a_fixed_length_stays_as_it_was_asked_for():
    fixed = Collator({"input_ids": 0}, pad_to=16)
    assert fixed.in_rows(0) is fixed


def test_longer_examples_stay_padded():
    given = chosen([WIDTHS[-1] + 1, 3])
    batch, expected = PADDED.in_rows(0)(given), PADDED(given)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
