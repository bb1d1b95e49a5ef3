"""From the settings of a model to a `transformers` model with fresh weights, and its loss."""

from typing import TYPE_CHECKING, Any

from training.config import Model

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


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
        "tie_word_embeddings": model.tie_embeddings,
    }
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


def build(config: "PretrainedConfig", seed: int) -> "PreTrainedModel":
    """A model with fresh fp32 weights on the CPU, the same on every rank that uses the same seed.

    Each process holds the whole model for a moment, before DeepSpeed shards it.
    """
    import torch

    from training.objectives import model_class

    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    return model


def count_parameters(model: "torch.nn.Module") -> int:
    """Weights of a model; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def token_losses(model: "torch.nn.Module", batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """Cross entropy in nats, fp32, of each label of a micro-batch that is not -100 (labels,)."""
    from torch.nn import functional

    device: Any = model.device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    labels = inputs.pop("labels").flatten()
    logits = model(**inputs).logits.flatten(0, 1)
    return functional.cross_entropy(logits[labels != -100].float(), labels[labels != -100], reduction="none")
