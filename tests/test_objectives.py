"""Objectives: what becomes of rows, documents attended to alone, and models that learn each by heart."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shards import documents, make_tokenizer

from tokenizer.encode import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, MASK, TOKENIZER_FILE, Encoder, sentinel
from training.config import Model, Objective
from training.fill_in_middle import FillInTheMiddle
from training.micro_batch import MicroBatch
from training.objectives import (
    Causal,
    Masked,
    configuration,
    document_positions,
    model_class,
    prediction,
)
from training.spans import Spans, noise_counts

KINDS = ("causal", "fill_in_the_middle", "masked", "spans")
MARKERS = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, MASK, *(sentinel(number) for number in range(8)))
END = 0


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer") / "full"


@pytest.fixture(scope="module")
def encoder(tokenizer_folder):
    return make_tokenizer(tokenizer_folder, vocab_size=320, more=MARKERS)


@pytest.fixture(scope="module")
def rows(encoder):
    """Sixteen rows of 128 + 1 tokens of documents with accents in them, each document ended."""
    texts = [text.replace("total", "tôtal→") for text in documents(200, seed=3)]
    flat = np.concatenate(encoder.encode(pa.array(texts)))
    return flat[: 16 * 129].reshape(16, 129).astype(np.uint16)


def keys(count, epoch=0):
    return [f"0:{epoch}:{number}" for number in range(count)]


def model_of(kind, encoder, architecture="llama", context=128, **changes):
    import torch

    settings = Model(**({"architecture": architecture, "hidden_size": 64, "layers": 2, "heads": 4} | changes))
    config = configuration(
        Objective(kind), settings, vocab_size=encoder.vocab_size, context_tokens=context, end_of_text_id=END
    )
    torch.manual_seed(0)
    model = model_class(config).from_config(config)
    model.config.use_cache = False  # as training.model.build: with a cache `transformers` heeds no borders
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sequence", "document"])
def test_what_a_row_becomes_depends_on_row_and_key_alone(kind, attention, encoder, rows):
    predict = prediction(Objective(kind), attention, encoder, 128)
    whole = predict(rows, keys(16))
    for number in (0, 5, 15):
        alone = predict(rows[number : number + 1], keys(16)[number : number + 1])
        for name, array in whole.items():
            np.testing.assert_array_equal(alone[name][0], array[number])
    if kind != "causal":
        assert any(not np.array_equal(array, whole[name]) for name, array in predict(rows, keys(16, 1)).items())


@given(st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_positions_begin_anew_at_each_end_of_text(table):
    found = document_positions(np.array(table), END)
    for row, positions in zip(table, found.tolist(), strict=True):
        expected, position = [], -1
        for token in row:
            position = 0 if token == END else position + 1
            expected.append(position)
        assert positions == expected


def assert_each_document_is_alone(model, rows, inputs, together):
    """The logits of rows of several documents are, document by document, those that a model gives to it alone."""
    import torch

    assert (rows[:, 1:-1] == END).sum() > 2
    for row in range(len(rows)):
        begins = [0, *(np.flatnonzero(rows[row, :-1] == END)).tolist(), rows.shape[1] - 1]
        for begin, end in pairwise(begins):
            if begin < end:
                with torch.no_grad():
                    alone = model(input_ids=inputs[row : row + 1, begin:end]).logits[0]
                torch.testing.assert_close(together[row, begin:end], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_documents_in_one_row_get_the_logits_of_each_alone(architecture, implementation, encoder, rows):
    import torch

    model = model_of("causal", encoder, architecture).eval()
    model.set_attn_implementation(implementation)
    batch = MicroBatch.of(Causal(END)(rows[:3], keys(3))).on("cpu")
    labels = batch.pop("labels")
    with torch.no_grad():
        together = model(**batch).logits
        across = model(input_ids=batch["input_ids"]).logits
    assert_each_document_is_alone(model, rows[:3], batch["input_ids"], together)
    assert (labels != -100).all()
    assert not torch.allclose(across, together, atol=1e-2)


def test_masked_model_reads_each_document_of_a_row_as_if_it_were_alone(encoder, rows):
    import torch

    model = model_of("masked", encoder).eval()
    arrays = Masked(encoder.id_of(MASK), encoder.vocab_size, 0.15, END)(rows[:3], keys(3))
    batch = MicroBatch.of(arrays).on("cpu")
    batch.pop("labels")
    plain = Masked(encoder.id_of(MASK), encoder.vocab_size, 0.15)(rows[:3], keys(3))
    np.testing.assert_array_equal(batch["input_ids"].numpy(), plain["input_ids"])
    with torch.no_grad():
        together = model(**batch).logits
    assert_each_document_is_alone(model, rows[:3], batch["input_ids"], together)


def test_flattened_micro_batches_hold_the_same_tokens_and_borders(encoder, rows):
    import torch

    arrays = Causal(END)(rows[:4], keys(4))
    flat, plain = (MicroBatch.of(arrays, flatten=flatten).on("cpu") for flatten in (True, False))
    borders = flat.pop("document_borders")
    assert {name: tensor.shape for name, tensor in flat.items()} == dict.fromkeys(plain, (1, 4 * 128))
    begins = np.flatnonzero(plain["position_ids"].numpy().ravel() == 0).tolist()
    assert borders.dtype == torch.int32
    assert borders.tolist() == begins + [4 * 128] * (64 - len(begins))
    model = model_of("causal", encoder).eval()
    with torch.no_grad():
        one = model(input_ids=flat["input_ids"], position_ids=flat["position_ids"]).logits
        other = model(input_ids=plain["input_ids"], position_ids=plain["position_ids"]).logits
    torch.testing.assert_close(one.view_as(other), other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix_first", [0.0, 1.0])
def test_filling_in_the_middle_cuts_at_characters_and_keeps_place_and_text(suffix_first, encoder, rows):
    """Each rearranged document, put together again, is a run of the original that lacks little of its far end."""
    found = FillInTheMiddle(encoder, rate=1.0, suffix_first=suffix_first)(rows, keys(16))
    prefix, middle, suffix = (encoder.id_of(name) for name in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX))
    np.testing.assert_array_equal(found == END, rows == END)
    inside_token = arranged = 0
    for row, old in zip(found, rows, strict=True):
        ends = np.flatnonzero(row == END).tolist()
        for begin, end in zip([0, *(end + 1 for end in ends)], [*ends, len(row)], strict=True):
            ids, original = row[begin:end], encoder.decode(old[begin:end]).strip("\ufffd")
            if prefix not in ids:
                np.testing.assert_array_equal(ids, old[begin:end])
                continue
            arranged += 1
            first, second, third = (int(np.flatnonzero(ids == marker)[0]) for marker in (prefix, suffix, middle))
            assert first == 0
            assert second < third
            assert second == 1 or not suffix_first
            parts = [ids[1:second], ids[second + 1 : third], ids[third + 1 :]]
            before, after, last = (encoder.decode(part) for part in parts)
            assert (before + last + after).strip("\ufffd") in original  # it lacks a little at its begin or end
            if not suffix_first:
                np.testing.assert_array_equal(parts[2], encoder.encode_batch(pa.array([last])).ids)
                joined, *apart = encoder.encode(pa.array([before + last, before, last]))
                inside_token += not np.array_equal(joined[:-1], np.concatenate([part[:-1] for part in apart]))
    assert arranged > 20
    assert suffix_first or inside_token > 3


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    ],
)
def test_a_tokenizer_that_changes_parts_of_a_text_fills_no_middle(change, encoder, tokenizer_folder, tmp_path):
    record = json.loads((tokenizer_folder / TOKENIZER_FILE).read_text())
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=r"^objective.kind fill_in_the_middle: the tokenizer puts spaces"):
        prediction(Objective("fill_in_the_middle"), "sequence", Encoder(tmp_path), 128)


def test_rates_of_filling_in_the_middle_are_met(encoder, rows):
    prefix, suffix = encoder.id_of(FIM_PREFIX), encoder.id_of(FIM_SUFFIX)
    arranged = spm = 0
    everywhere = FillInTheMiddle(encoder, rate=1.0, suffix_first=0.3)
    possible = sum(int((everywhere(rows, keys(16, epoch)) == prefix).sum()) for epoch in range(10))
    rearrange = FillInTheMiddle(encoder, rate=0.4, suffix_first=0.3)
    for epoch in range(10):
        found = rearrange(rows, keys(16, epoch))
        arranged += int((found == prefix).sum())
        spm += int(((found[:, :-1] == prefix) & (found[:, 1:] == suffix)).sum())
    assert arranged / possible == pytest.approx(0.4, abs=0.07)
    assert 0.2 < spm / arranged < 0.45  # an empty prefix looks like SPM, too
    assert not (FillInTheMiddle(encoder, 0.0, 0.5)(rows, keys(16)) == prefix).any()


@given(noise=st.floats(0.01, 0.9), data=st.data())
@settings(max_examples=30, deadline=None)
def test_masked_rows_differ_at_labels_alone_and_have_equally_many(noise, data, rows):
    key = data.draw(st.text(max_size=5))
    found = Masked(5, 320, noise)(rows, [f"{key}{number}" for number in range(16)])
    chosen = found["labels"] != -100
    assert set(chosen.sum(axis=1).tolist()) == {max(1, round(noise * 128))}
    np.testing.assert_array_equal(found["labels"][chosen], rows[:, :-1][chosen])
    np.testing.assert_array_equal(found["input_ids"][~chosen], rows[:, :-1][~chosen])


def test_four_fifths_of_chosen_tokens_are_masked(rows):
    found = Masked(5, 320, 0.5)(np.tile(rows, (8, 1)), keys(128))
    chosen = found["labels"] != -100
    assert (found["input_ids"][chosen] == 5).mean() == pytest.approx(0.8, abs=0.02)
    assert (found["input_ids"][chosen] == found["labels"][chosen]).mean() == pytest.approx(0.1, abs=0.02)


@given(tokens=st.integers(4, 128), noise=st.floats(0.01, 0.95), length=st.floats(1, 8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_spans_and_inputs_give_back_the_row(tokens, noise, length, data, rows):
    _, runs = noise_counts(tokens, noise, length)
    sentinels = list(range(1000, 1000 + runs))
    spans = Spans(sentinels, END, noise, length)
    row = np.where(rows[3:4, : tokens + 1] == END, 7, rows[3:4, : tokens + 1])
    found = spans(row, [data.draw(st.text(max_size=4))])
    inputs, labels, decoder = (found[name][0].tolist() for name in ("input_ids", "labels", "decoder_input_ids"))
    assert labels[-1] == END
    assert decoder == [END, *labels[:-1]]
    hidden: dict[int, list[int]] = {}
    for token in labels[:-1]:
        if token >= 1000:
            hidden[token] = []
        else:
            hidden[list(hidden)[-1]].append(token)
    assert list(hidden) == sentinels
    assert all(hidden.values())
    whole = [part for token in inputs for part in (hidden[token] if token >= 1000 else [token])]
    assert whole == row[0, :-1].tolist()


def drawn_rows(data, borders, rows):
    """A row of 4 to 128 + 1 tokens with end-of-text tokens where `borders` say, and none elsewhere."""
    row = rows[3:4, : data.draw(st.integers(4, 128)) + 1].copy()
    row[row == END] = 7
    row[0, [place for place in borders if place < row.shape[1]]] = END
    return row


@given(
    borders=st.lists(st.integers(0, 128), max_size=40),
    noise=st.floats(0.01, 0.95),
    length=st.floats(1, 8),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_spans_of_documents_apart_are_those_of_each_alone(borders, noise, length, data, rows):
    """Put together by document, what is read and written gives back each document but for the row's end."""
    row = drawn_rows(data, borders, rows)
    hidden, runs = noise_counts(row.shape[1] - 1, noise, length)
    sentinels = list(range(1000, 1000 + runs))
    key = data.draw(st.text(max_size=4))
    found = {name: array[0] for name, array in Spans(sentinels, END, noise, length, apart=True)(row, [key]).items()}
    assert len(found["input_ids"]) == len(found["documents"]) == row.shape[1] - 1 - hidden + runs
    assert len(found["labels"]) == len(found["decoder_documents"]) == hidden + runs + 1
    numbers = np.concatenate([[0], (row[0, 1:-1] == END).cumsum()])
    labels = found["labels"]
    lacking = int((labels == -100).sum())
    assert labels[len(labels) - lacking - 1] == END
    whole = []
    for number in range(numbers[-1] + 1):
        mine = found["decoder_documents"] == number
        written = labels[mine].tolist()
        decoded = found["decoder_input_ids"][mine].tolist()
        assert decoded == [END, *(END if token == -100 else token for token in written[:-1])][: len(written)]
        if number == found["decoder_documents"][-1]:
            written = written[: len(written) - lacking - 1]
        hidden_of: dict[int, list[int]] = {}
        for token in written:
            if token >= 1000:
                hidden_of[token] = []
            else:
                hidden_of[list(hidden_of)[-1]].append(token)
        assert list(hidden_of) == sentinels[: len(hidden_of)]
        assert all(hidden_of.values())
        for token in found["input_ids"][found["documents"] == number].tolist():
            whole += [(part, number) for part in (hidden_of[token] if token >= 1000 else [token])]
    expected = list(zip(row[0, :-1].tolist(), numbers.tolist(), strict=True))
    assert len(whole) == len(expected) - lacking
    left = iter(expected)
    assert all(one in left for one in whole)  # in this order
    if not lacking:
        assert whole == expected
    if numbers[-1] == 0:
        plain = Spans(sentinels, END, noise, length)(row, [key])
        for name, array in plain.items():
            np.testing.assert_array_equal(array[0], found[name])


def test_spans_hide_the_same_share_at_the_ends_of_documents(rows):
    """Of documents of 60 tokens, each place but the first few is hidden about as often as any other."""
    row = np.full((1, 961), 7)
    row[0, ::60] = END
    row = np.tile(row, (400, 1)) + (np.arange(961) % 60)[None] * (np.arange(961) % 60 > 0)
    found = Spans(list(range(1000, 1048)), END, 0.15, 3.0, apart=True)(row, keys(400))
    assert (found["labels"] != -100).all()
    places = found["labels"][(found["labels"] < 1000) & (found["labels"] != END)] - 7
    share = np.bincount(places, minlength=60)[1:] / (400 * 16)
    assert share[3:].min() > 0.1
    assert share.max() < 0.2


def test_encoder_decoder_reads_each_document_of_a_row_as_if_it_were_alone(encoder, rows):
    import torch

    from training.attention import separate_cross_attention

    objective, model = Objective("spans"), model_of("spans", encoder).eval()
    separate_cross_attention(model, objective, "document")
    arrays = prediction(objective, "document", encoder, 128)(rows[:8], keys(8))
    batch = MicroBatch.of(arrays).on("cpu")
    batch.pop("labels")
    with torch.no_grad():
        together = model(**batch).logits
    documents = 0
    for row in range(8):
        for number in sorted(set(arrays["decoder_documents"][row].tolist())):
            read = torch.from_numpy(arrays["documents"][row] == number)
            written = torch.from_numpy(arrays["decoder_documents"][row] == number)
            with torch.no_grad():
                alone = model(
                    input_ids=batch["input_ids"][row, read][None],
                    decoder_input_ids=batch["decoder_input_ids"][row, written][None],
                ).logits[0]
            torch.testing.assert_close(together[row, written], alone, atol=2e-5, rtol=1e-4)
            documents += 1
    assert documents > 12


def test_tokenizers_that_lack_a_token_are_refused_by_its_name(tmp_path, encoder):
    old = make_tokenizer(tmp_path / "old")
    for kind, name in [("fill_in_the_middle", "fim_prefix"), ("masked", "<mask>"), ("spans", "extra_id_0")]:
        with pytest.raises(
            ValueError, match=rf"the tokenizer has no token .*{name}.*; train one with tokenizer/train.py"
        ):
            prediction(Objective(kind), "sequence", old, 128)
    with pytest.raises(ValueError, match=r"<extra_id_8>.*--sentinels"):
        prediction(Objective("spans", noise=0.5), "sequence", encoder, 128)
    assert prediction(Objective(), "document", old, 128) is not None


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("masked", "spans"))) for kind in KINDS]
)
def test_a_small_set_is_learnt_by_heart(kind, encoder, rows):
    """What is predicted is fixed by row and key, so a model that has seen it often knows it."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    predict = prediction(Objective(kind), "sequence", encoder, 32)
    batch = MicroBatch.of(predict(rows[[0, 3], :33], keys(2))).on("cpu")
    model = model_of(kind, encoder, context=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    labels = batch.pop("labels")
    for _ in range(300):
        loss = functional.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.04:
            break
    assert loss.item() < 0.1
