"""Cross entropy as sums over labels, whole or in chunks of tokens, and a model that computes it in its forward pass.

Sums, not means: a global batch is cut among processes and micro-batches, and only the sum of all, divided by the
number of all labels, does not depend on the cut.
"""

import contextlib
import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
PROBE_LOGIT, PROBE_TOLERANCE = 100.0, 1e-4

Sums = tuple[torch.Tensor, torch.Tensor]


def summed_losses(logits: torch.Tensor, labels: torch.Tensor, z_loss: float) -> Sums:
    """What is minimised, and the cross entropy in nats: sums over the labels that are not IGNORED, fp32 scalars.

    Args:
        logits: (..., V), of any floating type.
        labels: (...), of the tokens that the logits predict.
        z_loss: weight of the squared logarithm of the softmax's denominator (Chowdhery et al., "PaLM", 2022, 5).
    """
    flat, targets = logits.flatten(0, -2).float(), labels.flatten()
    nats = functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    if not z_loss:
        return nats, nats.detach()
    squares = torch.where(targets == IGNORED, 0.0, flat.logsumexp(-1).square())
    return nats + z_loss * squares.sum(), nats.detach()


class ChunkedLosses(torch.autograd.Function):
    """`summed_losses` of hidden @ weight.T + bias, for some tokens at a time: no more logits than theirs ever exist.

    The gradient is computed with the loss, chunk by chunk, and kept: as much arithmetic as at once. It costs the
    memory of the hidden states and of one fp32 copy of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        chunk_tokens: int,
        z_loss: float,
        with_gradient: bool,
    ) -> Sums:
        """Hidden states (N, H), weight (V, H), bias (V,) and labels (N,)."""
        used = weight.to(hidden.dtype)
        total, nats = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(hidden) if with_gradient else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradient else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if with_gradient and bias is not None else None
        for begin in range(0, len(hidden), chunk_tokens):
            part, targets = hidden[begin : begin + chunk_tokens], labels[begin : begin + chunk_tokens]
            logits = functional.linear(part, used, None if bias is None else bias.to(hidden.dtype)).float()
            denominators, known = logits.logsumexp(-1), (targets != IGNORED).float()
            places = targets.clamp(min=0).unsqueeze(1)
            losses = (denominators - logits.gather(1, places).squeeze(1)) * known
            nats += losses.sum()
            total += (losses + z_loss * denominators.square() * known).sum()
            if of_hidden is None or of_weight is None:
                continue
            slopes = (logits - denominators.unsqueeze(1)).exp_()
            slopes.mul_((known * (1 + 2 * z_loss * denominators)).unsqueeze(1))
            slopes.scatter_add_(1, places, -known.unsqueeze(1))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(hidden.dtype)
            torch.mm(slopes, used, out=of_hidden[begin : begin + chunk_tokens])
            if slopes.dtype == of_weight.dtype:
                of_weight.addmm_(slopes.t(), part)
            else:
                of_weight += slopes.t() @ part
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nats)
        return total, nats

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        scale, (weight_dtype, bias_dtype) = gradients[0], ctx.dtypes
        in_bias = None if of_bias is None else (of_bias * scale).to(bias_dtype)
        in_hidden = (of_hidden.float() * scale).to(of_hidden.dtype)
        return in_hidden, (of_weight * scale).to(weight_dtype), in_bias, None, None, None, None


@torch.compiler.disable  # compiled, ChunkedLosses gave wrong gradients on a GPU (torch 2.11)
def in_chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    chunk_tokens: int,
    z_loss: float,
) -> Sums:
    """`summed_losses` of hidden (N, H) @ weight.T (V, H) + bias (V,): by Liger on GPUs where it is installed."""
    if not (hidden.is_cuda and has_liger()):
        with_gradient = torch.is_grad_enabled()
        return ChunkedLosses.apply(hidden, weight, bias, labels, chunk_tokens, z_loss, with_gradient)  # type: ignore[no-any-return]
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    found = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias,
        ignore_index=IGNORED,
        lse_square_scale=z_loss,
        reduction="sum",
        return_z_loss=bool(z_loss),
        accum_dtype=torch.float32,
        # Its chunks are of about this many times N · H / V tokens.
        chunk_mem_const=max(1, chunk_tokens * len(weight) // hidden.numel()),
    )
    if not z_loss:
        return found, found.detach()
    return found.loss, (found.loss - found.z_loss).detach()


@functools.cache
def has_liger() -> bool:
    """Whether the package liger-kernel is there (Hsu et al., "Liger Kernel", 2024)."""
    return importlib.util.find_spec("liger_kernel") is not None


def computes_losses(
    model: "PreTrainedModel", *, chunk_tokens: int, z_loss: float, autocast: torch.dtype | None
) -> "PreTrainedModel":
    """The model, whose forward pass now returns `summed_losses` where it is given `target_ids`; else it is as before.

    In the forward pass, because DeepSpeed puts a sharded weight together only there, and so that torch.compile sees
    the loss.

    Args:
        model: any with an output layer; for chunks one whose logits are that layer's output and nothing more.
        chunk_tokens: tokens whose logits exist at once; 0 = all.
        z_loss: see `summed_losses`.
        autocast: the type of matrix products where it is not the weights'.
    """
    plain, head = model.forward, model.get_output_embeddings()
    if getattr(model.config, "output_router_logits", False):
        _router_weight(model.config)

    def precision() -> Any:
        if autocast is None:
            return contextlib.nullcontext()
        return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", autocast)

    @functools.wraps(plain)
    def forward(*arguments: Any, target_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        with precision():
            if target_ids is None:
                return plain(*arguments, **inputs)
            if not chunk_tokens:
                found = plain(*arguments, **inputs)
                total, nats = summed_losses(found.logits, target_ids, z_loss)
                return total + _of_routers(found, model.config, target_ids), nats
            hidden = model.base_model(*arguments, **inputs).last_hidden_state
            return head(hidden, target_ids=target_ids)

    if chunk_tokens:
        _refuse_other_heads(model, head)
        _head_computes_losses(head, chunk_tokens, z_loss, autocast)
    model.forward = forward  # type: ignore[method-assign]
    return model


def _of_routers(found: Any, config: Any, labels: torch.Tensor) -> Any:
    """What a mixture of experts adds for their being used alike, where its configuration asks (output_router_logits).

    It is a mean over the tokens of a micro-batch, times their number, as all losses here; so it depends on the cut.
    """
    balance = getattr(found, "aux_loss", None)
    if balance is None:
        return 0.0
    return _router_weight(config) * balance * (labels != IGNORED).sum()


def _router_weight(config: Any) -> float:
    """Of the loss of routers; ValueError where a configuration does not name it as others do."""
    for name in ("router_aux_loss_coef", "aux_loss_coef"):
        if hasattr(config, name):
            return float(getattr(config, name))
    raise ValueError(f"a {config.model_type} has no router_aux_loss_coef; give output_router_logits false")


def _head_computes_losses(head: Any, chunk_tokens: int, z_loss: float, autocast: torch.dtype | None) -> None:
    plain = head.forward

    @functools.wraps(plain)
    def forward(hidden: torch.Tensor, target_ids: torch.Tensor | None = None) -> Any:
        if target_ids is None:
            return plain(hidden)
        flat = hidden.flatten(0, -2)
        flat = flat if autocast is None else flat.to(autocast)
        return in_chunks(flat, head.weight, head.bias, target_ids.flatten(), chunk_tokens, z_loss)

    head.forward = forward


def _refuse_other_heads(model: "PreTrainedModel", head: Any) -> None:
    """ValueError unless the logits of two tokens are what the output layer makes of the last hidden states."""
    line = f"a {model.config.model_type} model computes its logits in its own way; use compute.loss_chunk_tokens 0"
    if getattr(model.config, "output_router_logits", False):
        raise ValueError(
            "the loss of routers (output_router_logits) is not in chunks; use compute.loss_chunk_tokens 0"
        )
    if model.config.is_encoder_decoder or not isinstance(head, torch.nn.Linear):
        raise ValueError(line)
    if head.weight.device.type == "meta":
        return
    training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([[0, 1]])
        hidden = model.base_model(input_ids=ids).last_hidden_state
        # As large as a trained model's: a cap (tanh) does not show on the small ones of fresh weights.
        scale = PROBE_LOGIT / head(hidden).abs().max().clamp(min=torch.finfo(hidden.dtype).tiny)
        with head.register_forward_hook(lambda _head, _inputs, logits: logits * scale):
            whole, parts = model(input_ids=ids).logits, head(hidden)
    model.train(training)
    if not torch.allclose(whole, parts, atol=PROBE_TOLERANCE):
        raise ValueError(line)
