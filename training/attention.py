"""Attention by torch's fused kernels, which are told that it is causal, and where documents begin, and need no mask.

`transformers` gives a compiled model a mask of all pairs of tokens, since it cannot look at positions then; with a
mask torch computes the pairs that nothing may see, and takes none of its flash kernels. The kernel for documents is
torch.nn.attention.varlen, in 16 bits on GPUs only; elsewhere documents are kept apart by a mask.
"""

import functools
from typing import TYPE_CHECKING, Any

from training.config import Attention, Objective
from training.micro_batch import same_document
from training.objectives import FITTING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FUSED = "fused"
PLAIN = ("gpt2", "llama")  # each token sees all before it, in every layer


def use_fused(model: "PreTrainedModel", objective: Objective, attention: Attention, *, in_16_bits: bool) -> None:
    """Have a model compute its attention here, where that is what its own would be; else leave it as it is.

    Args:
        in_16_bits: whether queries and keys are so and on a GPU.
    """
    config = model.config
    if config.model_type not in PLAIN or objective.kind in FITTING:
        return
    if config._attn_implementation != "sdpa" or (attention == "document" and not (in_16_bits and _has_varlen(config))):
        return
    from transformers import AttentionInterface

    AttentionInterface.register(FUSED, fused_attention)
    model.set_attn_implementation(FUSED)


def separate_cross_attention(model: "PreTrainedModel", objective: Objective, attention: Attention) -> None:
    """Let an encoder-decoder that keeps documents apart take a `cross_attention_mask` (B, 1, T, S).

    T5 of `transformers` gives the decoder's view of what was read the mask of the encoder.
    """
    if objective.kind != "spans" or attention != "document":
        return
    plain = model.forward

    @functools.wraps(plain)
    def forward(*arguments: Any, cross_attention_mask: "torch.Tensor | None" = None, **inputs: Any) -> Any:
        if cross_attention_mask is None:
            return plain(*arguments, **inputs)
        read = model.get_encoder()(input_ids=inputs.pop("input_ids"), attention_mask=inputs.pop("attention_mask"))
        return plain(encoder_outputs=read, attention_mask=cross_attention_mask, **inputs)

    model.forward = forward  # type: ignore[method-assign]


def refuse_other_reading(model: "PreTrainedModel", objective: Objective, attention: Attention) -> None:
    """ValueError where a model, on the CPU, sees the tokens that it is to predict, or across borders of documents.

    Two short texts tell that differ in one token: the first one's logits must not know of a later token, nor those of
    a second document of the first. `transformers` has causal classes of models that read both ways (RoBERTa), and
    models that pass over positions (OPT, Falcon, BLOOM), or keep a state across borders (Mamba).
    """
    config = model.config
    _refuse_other_masks(config, objective, attention)
    if config.model_type in PLAIN or (objective.kind in FITTING and attention == "sequence"):
        return
    import torch

    ids = (torch.arange(1, 7) % config.get_text_config().vocab_size).unsqueeze(0)
    borders: dict[str, torch.Tensor] = {}
    if attention == "document":
        borders["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2]])
    if objective.kind in FITTING:
        documents = torch.tensor([[1, 1, 1, 2, 2, 2]])
        borders["attention_mask"] = same_document(documents, documents)
    if objective.kind == "spans":
        del borders["position_ids"]
        whole = {"decoder_attention_mask": borders["attention_mask"].tril(), "decoder_input_ids": ids}
        borders |= whole | {"cross_attention_mask": borders["attention_mask"]}
    training = model.training
    model.eval()

    def moved(place: int, seen: slice) -> bool:
        """Whether another token at a place moves logits that must not know of it."""
        other = ids.clone()
        other[0, place] = ids[0, place - 1]
        one, two = (model(input_ids=text, use_cache=False, **borders).logits[0, seen] for text in (ids, other))
        return not torch.allclose(one, two, rtol=1e-4, atol=1e-5)

    kind = f"model {config.model_type}"
    try:
        with torch.no_grad():
            if objective.kind not in FITTING and moved(5, slice(0, 5)):
                raise ValueError(
                    f"{kind} sees the tokens that it is to predict; --objective.kind causal cannot train it"
                )
            if attention == "document" and moved(1, slice(3, 6)):
                raise ValueError(f"{kind} does not keep documents apart; use --attention sequence")
    except TypeError as error:
        raise ValueError(f"{kind} cannot be trained here: {str(error).splitlines()[0]}") from None
    finally:
        model.train(training)


def _refuse_other_masks(config: Any, objective: Objective, attention: Attention) -> None:
    """ValueError where an implementation of attention does not take the masks that keep documents apart."""
    implementation = config._attn_implementation
    takes = implementation == "sdpa" if objective.kind in FITTING else not implementation.startswith("flash")
    if attention == "document" and not takes:
        raise ValueError(
            f"attention document needs a mask, which {implementation} does not take here; leave attn_implementation "
            "out of model.config"
        )


def takes_borders(model: "PreTrainedModel") -> bool:
    """Whether a model keeps documents apart by the `document_borders` of flattened batches."""
    return bool(model.config._attn_implementation == FUSED)


def fused_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_borders: "torch.Tensor | None" = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention as `transformers` calls it: (B, heads, T, head size) -> (B, T, heads, head size).

    Args:
        document_borders: of one row of documents: int32, where each begins and the last ends (micro_batch.py).
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if document_borders is None:
        return sdpa_attention_forward(module, query, key, value, None, dropout=dropout, scaling=scaling, **others)
    from torch.nn.attention.varlen import varlen_attn

    config: Any = module.config
    longest, groups = min(query.shape[2], config.max_position_embeddings), query.shape[1] // key.shape[1]
    seen: Any = varlen_attn(
        query.transpose(1, 2)[0],
        repeat_kv(key, groups).transpose(1, 2)[0],
        repeat_kv(value, groups).transpose(1, 2)[0],
        document_borders,
        document_borders,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
    )
    return seen.unsqueeze(0), None


def _has_varlen(config: Any) -> bool:
    """Whether torch's varlen attention computes that of a model: on Ampere or later, without dropout."""
    import torch

    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dropout = getattr(config, "attn_pdrop", 0.0) or getattr(config, "attention_dropout", 0.0)
    return torch.cuda.get_device_capability() >= (8, 0) and head_size % 8 == 0 and head_size <= 256 and not dropout
