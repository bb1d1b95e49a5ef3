"""From the settings of a model to a `transformers` model, with fresh weights or with those of a folder."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.encode import TOKENIZER_FILE, Encoder
from tokenizer.shards import ShardIndex
from training.config import Model

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# In the config.json of an export: the kind of objective that it was trained with, last if there were several.
OBJECTIVE = "corella_objective"
log = logging.getLogger("train")


def configuration(model: Model, *, vocab_size: int, context_tokens: int, end_of_text_id: int) -> "PretrainedConfig":
    """The `transformers` configuration of a model.

    The vocabulary is exactly the tokenizer's: a padded one would train rows that no token uses and every consumer of
    the exported model would have to know of them. No padding token is named: it would share the id that ends texts,
    and torch would then never train that row of the embedding.
    """
    from transformers import GPT2Config, LlamaConfig

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
    }
    if model.config:
        return _from_text(model.config, context_tokens, common)
    common["tie_word_embeddings"] = model.tie_embeddings
    if model.architecture == "gpt2":
        return GPT2Config(
            n_embd=model.hidden_size,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.feed_forward_size or None,
            n_positions=context_tokens,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
            **common,
        )
    return LlamaConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.feed_forward_size or -(-model.hidden_size * 8 // 3 // 64) * 64,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_value_heads or model.heads,
        max_position_embeddings=context_tokens,
        attention_dropout=model.dropout,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        **common,
    )


def _from_text(text: str, context_tokens: int, common: dict[str, Any]) -> "PretrainedConfig":
    """A configuration of `transformers` from its JSON; ValueError where it cannot do for the run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    record: dict[str, Any] = json.loads(text)
    kind, rows = record.pop("model_type"), record.pop("pretrained_rows", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"model.config has model_type {kind!r}, which this `transformers` does not know")
    if rows is not None:
        common = common | {"vocab_size": rows}
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype"):
        record.pop(key, None)
    try:
        config = AutoConfig.for_model(kind, **record | common)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model.config is no configuration of `transformers` ({kind}): {reason}") from None
    if config.get_text_config() is not config:
        raise ValueError(f"model.config is of several models ({kind}); give the one that writes text, its text_config")
    if rows is None or config.pad_token_id == common["eos_token_id"]:
        config.pad_token_id = None
    context = getattr(config, "max_position_embeddings", None) or context_tokens
    if context < context_tokens:
        raise ValueError(
            f"the model has a context of {context} tokens, batch.sequence_length is {context_tokens}; choose a "
            "shorter one"
        )
    return config


def read_pretrained(folder: str, model: Model, shards: Path) -> Model:
    """The model of a folder to go on from; ValueError where its vocabulary is not that of the shards.

    Compared are the tokenizer.json of both, and the rows of the embedding: there may be more of them than tokens.
    """
    index = ShardIndex.load(shards)
    if model.config:
        log.warning("model.config: not used, --from_pretrained decides")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"no config.json in {folder}; --from_pretrained takes the folder of a saved model")
    read = replace(model, config=folder).read()
    record = json.loads(read.config)
    rows = record.get("vocab_size", 0)
    if not isinstance(rows, int) or rows < index.vocab_size:
        raise ValueError(
            f"the model in {folder} has {rows} tokens, the shards have {index.vocab_size}; write the shards with its "
            "tokenizer"
        )
    if (Path(folder) / TOKENIZER_FILE).is_file():
        fingerprint = Encoder(Path(folder)).fingerprint
        if fingerprint != index.tokenizer_fingerprint:
            raise ValueError(
                f"the tokenizer in {folder} (fingerprint {fingerprint}) is not that of the shards "
                f"({index.tokenizer_fingerprint}); write the shards with it"
            )
    else:
        log.warning(
            "%s holds no %s: whether its ids mean what those of the shards do is not known", folder, TOKENIZER_FILE
        )
    return replace(read, config=json.dumps(record | {"pretrained_rows": rows}, sort_keys=True))


def build(config: "PretrainedConfig", seed: int, pretrained: str = "") -> "PreTrainedModel":
    """A model in fp32 on the CPU: with fresh weights, the same on every rank that uses the same seed, or with those of
    the folder `pretrained`.

    Each process holds the whole model for a moment, before DeepSpeed shards it.
    """
    import torch

    from training.objectives import model_class

    torch.manual_seed(seed)
    kind = model_class(config)
    model: PreTrainedModel
    if pretrained:
        model = _of_folder(kind, config, pretrained)
        model.train()
    else:
        try:
            model = kind.from_config(config, dtype=torch.float32)
        except Exception as error:  # each model of `transformers` has faults of its own for sizes that cannot be
            reason = " ".join(str(error).split()) or repr(error)
            wrong = f"a {config.model_type} of these sizes cannot be made: {reason}"
            raise ValueError(f"{wrong}; change --model.config, or --model.*") from error
    model.config.use_cache = False
    return model


def _of_folder(kind: Any, config: "PretrainedConfig", folder: str) -> "PreTrainedModel":
    """A model with the weights of a folder, all of them; ValueError where they are not there or not those."""
    import torch

    if not Path(folder).is_dir():
        raise ValueError(f"no folder {folder}; the run began from it (--from_pretrained)")
    try:
        return whole_model(kind, folder, config=config, dtype=torch.float32)
    except Exception as error:  # safetensors and torch have faults of their own
        reason = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"the weights in {folder} cannot be gone on from: {reason}") from error


def whole_model(kind: Any, folder: str | Path, **settings: Any) -> "PreTrainedModel":
    """A model from a folder; ValueError names weights that are missing or of another shape, which `transformers` would
    draw at random."""
    model, told = kind.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    wrong = {
        "is missing": sorted(told["missing_keys"]),
        "has another shape than config.json says": sorted(name for name, *_ in told["mismatched_keys"]),
    }
    for fault, names in wrong.items():
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{names[0]} {fault}{more}")
    return model  # type: ignore[no-any-return]


def count_parameters(model: "torch.nn.Module") -> int:
    """Weights of a model; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
