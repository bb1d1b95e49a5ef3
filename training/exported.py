"""A saved model that continues text, ours or another's, and its tokenizer; what cannot be either is one line."""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.model import OBJECTIVE, whole_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Names that configurations have for the tokens a model can read; those without any (BLOOM) have no bound.
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "seq_length")
# Models that are asked for a cache and give none back: they keep what they read themselves.
OWN_CACHE = ("recurrent_gemma",)


def load(folder: str | Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """An exported model, on the GPU if there is one, and its tokenizer; the network is never asked.

    On CPUs it is in fp32, whatever its file has: in 16 bits what a row is batched with changes its rounding.

    ValueError refuses a model that does not continue text, and files that cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with _damage_told("config.json", folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _check_causal(config, folder)
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
    with _damage_told("the weights", folder):
        network = whole_model(AutoModelForCausalLM, folder, config=config, dtype=dtype).eval()
    # AutoTokenizer splits words anew for some kinds of models (qwen2), whatever tokenizer.json says.
    kind: Any = PreTrainedTokenizerFast if hasattr(config, OBJECTIVE) else AutoTokenizer
    with _damage_told("the tokenizer", folder):
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        ids, rows = max(tokenizer.get_vocab().values()) + 1, network.get_input_embeddings().num_embeddings
        if ids > rows:
            raise ValueError(f"it has {ids:,} tokens and the model {rows:,}")
    return network.to(device), tokenizer


def begin_of(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token that a tokenizer begins texts with, where it does; one that it ends them with is not for prompts."""
    first = encoded(tokenizer, "x", add_special_tokens=True)[:1]
    return first if first == [tokenizer.bos_token_id] else []


def encoded(tokenizer: "PreTrainedTokenizerBase", text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text, with or without what the tokenizer puts around it."""
    return list(tokenizer(text, add_special_tokens=add_special_tokens, return_token_type_ids=False)["input_ids"])


def context_of(config: "PretrainedConfig") -> int | None:
    """Tokens that a model can read at once; None = as many as there are."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((int(tokens) for tokens in found if tokens and tokens > 0), None)


@contextlib.contextmanager
def _damage_told(part: str, folder: str | Path) -> Iterator[None]:
    """What cannot be read, as a ValueError of one line: `transformers` passes on the faults of all it is made of."""
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise ValueError(f"{part} in {folder} cannot be read: {lines[0]}; export the model again") from error


def _check_causal(config: "PretrainedConfig", folder: str | Path) -> None:
    """ValueError unless the model predicts the next token, and keeps what it read for the one after.

    BERT and its kin have a causal class too, for those that were trained as decoders: their configuration says so.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.is_encoder_decoder:
        kind = "an encoder and a decoder"
    elif network is None:
        kind = "no language model"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        kind = "a masked language model"
    elif "past_key_values" not in inspect.signature(network.forward).parameters or config.model_type in OWN_CACHE:
        kind = "a model without a cache of keys and values"
    else:
        return
    raise ValueError(
        f"{folder} is {kind} (model_type {config.model_type}); generate needs a causal language model with a "
        "cache, as llama and gpt2 are, or what objective.kind causal and fill_in_the_middle train"
    )
