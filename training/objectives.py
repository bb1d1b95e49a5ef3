"""What a model learns to predict: rows of tokens -> inputs and labels, and the `transformers` model that fits.

An objective is a pure function of the rows and of the keys of their random draws, one a row. It takes rows (B, T + 1)
and returns `input_ids` and `labels` of int64, the labels IGNORED where nothing is predicted, the logits at t
predicting labels[t]; or, where each token predicts the next, `rows` (B, T + 1) that hold both. Beside them are further
keyword arguments of the model's forward pass.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.encode import MASK, Encoder, sentinel
from training.config import Attention, Model, Objective
from training.fill_in_middle import FillInTheMiddle
from training.micro_batch import DOCUMENTS, IGNORED, ROWS, Arrays
from training.order import generator
from training.spans import Spans, noise_counts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Rows = NDArray[Any]
Prediction = Callable[[Rows, list[str]], Arrays]


def prediction(objective: Objective, attention: Attention, encoder: Encoder, sequence_length: int) -> Prediction:
    """The function of an objective; ValueError if the tokenizer lacks a token that it needs.

    Args:
        objective: its settings.
        attention: see `Causal`.
        encoder: of the tokenizer that wrote the shards.
        sequence_length: T of the longest rows.
    """
    end_of_text_id = encoder.end_of_text_id if attention == "document" else None
    if objective.kind == "masked":
        return Masked(encoder.id_of(MASK), encoder.vocab_size, objective.noise, end_of_text_id)
    if objective.kind == "spans":
        _, count = noise_counts(sequence_length, objective.noise, objective.span_length)
        sentinels = [encoder.id_of(sentinel(number)) for number in range(count)]
        apart = attention == "document"
        return Spans(sentinels, encoder.end_of_text_id, objective.noise, objective.span_length, apart=apart)
    causal = Causal(end_of_text_id)
    if objective.kind == "causal":
        return causal
    rearrange = FillInTheMiddle(encoder, objective.rate, objective.suffix_first)
    return lambda rows, keys: causal(rearrange(rows, keys), keys)


class Causal:
    """Each token from those before it.

    Args:
        end_of_text_id: given where attention and positions begin anew with each document: `position_ids` tell the
            model so (see `document_positions`). None = sequences are read across borders.
    """

    def __init__(self, end_of_text_id: int | None = None) -> None:
        self.end_of_text_id = end_of_text_id

    def __call__(self, rows: Rows, keys: list[str]) -> Arrays:
        if self.end_of_text_id is None:
            return {ROWS: rows}
        return {ROWS: rows, "position_ids": document_positions(rows[:, :-1], self.end_of_text_id)}


def told_apart(arrays: Arrays) -> Arrays:
    """The same with `input_ids` and `labels` in place of rows."""
    rest = dict(arrays)
    rows = rest.pop(ROWS, None)
    if rows is None:
        return rest
    return {"input_ids": rows[:, :-1].astype(np.int64), "labels": rows[:, 1:].astype(np.int64)} | rest


def document_positions(inputs: Rows, end_of_text_id: int) -> NDArray[np.int32]:
    """Positions (B, T) that begin anew at the end-of-text token before each document.

    That token is the first input of the document it precedes, as it is when text is generated from nothing, and the
    last label of the one it ends: so every token is predicted once, and none from another document. `transformers`
    (create_causal_mask) takes positions that do not go up by one for borders that attention does not cross. It is a
    scan of the tokens: the text of a special token never becomes its id.
    """
    begins_here = inputs == end_of_text_id
    begins_here[:, 0] = True
    begins = np.flatnonzero(begins_here).astype(np.int32)
    positions = np.arange(inputs.size, dtype=np.int32)
    positions -= np.repeat(begins, np.diff(begins, append=inputs.size))
    return positions.reshape(inputs.shape)


class Masked:
    """Hidden tokens from all others (BERT, Devlin et al. 2018), the same number in each row.

    Of the tokens chosen 80 % become the mask, 10 % any token, and 10 % stay.

    Args:
        mask_id: of the mask token.
        vocab_size: random tokens are below.
        noise: share of tokens that are chosen; at least one is.
        end_of_text_id: given where documents are read apart: as of `Causal`, and `documents` numbers those of a row.
    """

    def __init__(self, mask_id: int, vocab_size: int, noise: float, end_of_text_id: int | None = None) -> None:
        self.mask_id, self.vocab_size, self.noise = mask_id, vocab_size, noise
        self.end_of_text_id = end_of_text_id

    def __call__(self, rows: Rows, keys: list[str]) -> Arrays:
        inputs = rows[:, :-1].astype(np.int64)
        labels = np.full_like(inputs, IGNORED)
        count = max(1, round(self.noise * inputs.shape[1]))
        for row, label, key in zip(inputs, labels, keys, strict=True):
            draw = generator(key)
            chosen = draw.permutation(len(row))[:count]
            label[chosen] = row[chosen]
            fate, anything = draw.random(count), draw.integers(0, self.vocab_size, count)
            row[chosen] = np.select([fate < 0.8, fate < 0.9], [self.mask_id, anything], row[chosen])
        arrays: Arrays = {"input_ids": inputs, "labels": labels}
        if self.end_of_text_id is None:
            return arrays
        positions = document_positions(rows[:, :-1], self.end_of_text_id)
        return arrays | {"position_ids": positions, DOCUMENTS: (positions == 0).cumsum(1, dtype=np.int32)}


FITTING = {"masked": "bert", "spans": "t5"}  # kinds of models, where not all that read from left to right do


def refuse_other_model(objective: Objective, model: Model) -> None:
    """ValueError where the model of a file, or of a folder, is none that an objective can train."""
    kind = json.loads(model.config)["model_type"] if model.config else None
    wanted = FITTING.get(objective.kind)
    if kind and wanted and kind != wanted:
        raise ValueError(
            f"objective.kind {objective.kind} trains a model of type {wanted}, and model.config or from_pretrained "
            f"gives a {kind}; give a {wanted}, or --objective.kind causal"
        )
    if kind in FITTING.values() and not wanted:
        raise ValueError(
            f"model.config or from_pretrained gives a {kind}, which objective.kind {objective.kind} does not train; "
            f"give --objective.kind {next(name for name, fitting in FITTING.items() if fitting == kind)}"
        )


def configuration(
    objective: Objective, model: Model, *, vocab_size: int, context_tokens: int, end_of_text_id: int
) -> "PretrainedConfig":
    """The `transformers` configuration that fits an objective: model.architecture, BERT for masked, T5 for spans.

    Or that of model.config, where it is of such a type; ValueError where it is not.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, BertConfig, T5Config

    from training import model as causal

    if model.config and objective.kind in FITTING:
        refuse_other_model(objective, model)
        config = causal.configuration(
            model, vocab_size=vocab_size, context_tokens=context_tokens, end_of_text_id=end_of_text_id
        )
        config.pad_token_id = None
        config.decoder_start_token_id = end_of_text_id if objective.kind == "spans" else None
        return config
    if objective.kind == "masked":
        return BertConfig(
            vocab_size=vocab_size,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            intermediate_size=model.feed_forward_size or 4 * model.hidden_size,
            max_position_embeddings=context_tokens,
            hidden_dropout_prob=model.dropout,
            attention_probs_dropout_prob=model.dropout,
            tie_word_embeddings=model.tie_embeddings,
            type_vocab_size=1,
            pad_token_id=None,
        )
    if objective.kind == "spans":
        ends: dict[str, Any] = {"decoder_start_token_id": end_of_text_id, "eos_token_id": end_of_text_id}
        return T5Config(
            vocab_size=vocab_size,
            d_model=model.hidden_size,
            d_kv=model.hidden_size // model.heads,
            d_ff=model.feed_forward_size or 4 * model.hidden_size,
            num_layers=model.layers,
            num_heads=model.heads,
            dropout_rate=model.dropout,
            pad_token_id=None,
            **ends | {"tie_word_embeddings": model.tie_embeddings},
        )
    config = causal.configuration(
        model, vocab_size=vocab_size, context_tokens=context_tokens, end_of_text_id=end_of_text_id
    )
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"model.config or from_pretrained gives a {config.model_type}, which does not continue text; give a "
            "causal language model, as llama and gpt2 are"
        )
    return config


def model_class(config: "PretrainedConfig") -> Any:
    """The `transformers` class that builds the model of a configuration, with its head."""
    import transformers

    classes = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
    return getattr(transformers, classes.get(config.model_type, "AutoModelForCausalLM"))
