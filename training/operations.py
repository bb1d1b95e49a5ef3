"""What training a live model on a token costs in floating-point operations, whatever its kind and its parts.

As arithmetic.py counts: products of parameters and tokens, six operations each, and attention over all positions.
"""

from collections.abc import Iterable
from typing import Any

from training.arithmetic import Size
from training.config import Objective
from training.spans import noise_counts

# How configurations name the experts that there are.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def flops_per_token(module: Any, sequence_length: int, objective: Objective) -> float:
    """Operations a token of rows of `sequence_length` tokens, as an objective makes inputs and labels of them."""
    if not module.config.is_encoder_decoder:
        return size_of_module(module).flops_per_token(sequence_length)
    hidden, runs = noise_counts(sequence_length, objective.noise, objective.span_length)
    read, written = sequence_length - hidden + runs, hidden + runs + 1
    return encoder_decoder_flops(module, read, written) / sequence_length


def size_of_module(module: Any) -> Size:
    """Parameters of a model, whole also where ZeRO has cut them (`ds_numel`); a token meets some experts alone."""
    config = module.config
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    looked_up = [] if tied else list(inputs.parameters())
    named = module.named_modules()
    looked_up += [one.weight for name, one in named if name.rsplit(".", 1)[-1] in ("wpe", "position_embeddings")]
    every = _count(module.parameters())
    experts, share = _experts(config)
    idle = (1 - share) * _count(
        one for name, one in module.named_parameters() if ".experts." in name or _is_of_all(one, experts)
    )
    multiplied = every - _count(looked_up) - round(idle)
    return Size(every, multiplied, config.num_hidden_layers, _attention_size(config))


def encoder_decoder_flops(module: Any, read: int, written: int) -> float:
    """Operations of a row of a T5: `read` tokens by the encoder, `written` by the decoder, which sees both."""
    config = module.config
    embedding = module.get_input_embeddings().weight
    encoder = _count(one for one in module.get_encoder().parameters() if one is not embedding)
    decoder = _count(one for one in module.get_decoder().parameters() if one is not embedding)
    # Keys and values of what the decoder sees of the encoder are computed of the tokens read.
    names = ("EncDecAttention.k.weight", "EncDecAttention.v.weight")
    crossing = _count(one for name, one in module.named_parameters() if name.endswith(names))
    head = _count([module.get_output_embeddings().weight])
    products = (encoder + crossing) * read + (decoder - crossing + head) * written
    pairs = config.num_layers * read * read + config.num_decoder_layers * (written + read) * written
    return 6.0 * products + 12.0 * config.num_heads * config.d_kv * pairs


def _attention_size(config: Any) -> int:
    """Heads times head size, which need not be the hidden size: the mean of that of queries and of values (MLA)."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return int(config.hidden_size)
    names = ("qk_head_dim", "head_dim")
    queries = next((size for name in names if (size := getattr(config, name, None))), config.hidden_size // heads)
    values = getattr(config, "v_head_dim", None) or queries
    return int(heads * (queries + values) // 2)


def _experts(config: Any) -> tuple[int, float]:
    """How many experts a model has, and the share of them that each token goes through."""
    experts = next((getattr(config, name) for name in EXPERTS if getattr(config, name, None)), 0)
    met = getattr(config, "num_experts_per_tok", None)
    return experts, min(1.0, met / experts) if experts and met else 1.0


def _is_of_all(parameter: Any, experts: int) -> bool:
    """Whether a parameter holds one matrix for each expert."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) == 3 and shape[0] == experts


def _count(parameters: Iterable[Any]) -> int:
    return sum(int(getattr(one, "ds_numel", one.numel())) for one in parameters)
