"""What a model costs, counted: parameters of a shape, floating-point operations a token, and the peaks of devices.

A token's operations are 6N + 12·L·d·T (PaLM, Chowdhery et al. 2022, appendix B; nanoGPT counts alike): N parameters
that multiply it, forward once and backward twice at two operations each, and attention of width d (heads times head
size) over T positions without regard to the causal mask. N leaves out the matrices that are looked up, not
multiplied: the input embedding, unless it is the output layer as well, and learned positions. Recomputed activations
are no work done, so a run that recomputes shows a lower share of the peak.
"""

import re
from dataclasses import dataclass

from training.config import Model

# Dense bf16 (fp16 before Ampere) of the makers' data sheets, without sparsity, by what the device's name holds. The
# first that matches counts.
PEAK_FLOPS = (
    (r"\bGB200\b", 2500e12),
    (r"\bB200\b", 2250e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\b(H100|H200) NVL\b", 835e12),
    (r"\b(H100|H200|H800|GH200)\b", 989e12),
    (r"\bH20\b", 148e12),
    (r"\bA(100|800)\b", 312e12),
    (r"\bMI300X\b", 1307e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bA10\b", 125e12),
    (r"\bA10G\b", 70e12),
    (r"\bV100\b", 125e12),
    (r"\bT4\b", 65e12),
    (r"\bRTX 4090\b", 165e12),
    (r"\bRTX 3090\b", 71e12),
)


@dataclass(frozen=True)
class Size:
    """Parameters of a model: all, and those that multiply each token (`multiplied`, the N of 6N); d of attention."""

    parameters: int
    multiplied: int
    layers: int
    attention_size: int

    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of training on one token of a sequence of that length."""
        return 6.0 * self.multiplied + 12.0 * self.layers * self.attention_size * sequence_length


def feed_forward_size(model: Model) -> int:
    """Inner width of the feed-forward block, where the settings leave it to the architecture."""
    if model.feed_forward_size:
        return model.feed_forward_size
    return 4 * model.hidden_size if model.architecture == "gpt2" else -(-model.hidden_size * 8 // 3 // 64) * 64


def size_of(model: Model, *, vocab_size: int, context_tokens: int) -> Size:
    """Count the parameters of a shape without building it."""
    d, inner = model.hidden_size, feed_forward_size(model)
    embedding, positions = vocab_size * d, 0
    if model.architecture == "gpt2":
        positions = context_tokens * d
        block = (4 * d * d + 4 * d) + (2 * d * inner + inner + d) + 4 * d
        final = 2 * d
    else:
        key_value = (model.key_value_heads or model.heads) * (d // model.heads)
        block = 2 * d * d + 2 * d * key_value + 3 * d * inner + 2 * d
        final = d
    body = model.layers * block + final
    looked_up = positions + (0 if model.tie_embeddings else embedding)
    return Size(body + embedding + looked_up, body + embedding, model.layers, d)


def known_peak(device_name: str) -> float | None:
    """Dense bf16 operations a second of an accelerator by its name; None where it is not known."""
    return next((peak for pattern, peak in PEAK_FLOPS if re.search(pattern, device_name, re.IGNORECASE)), None)
