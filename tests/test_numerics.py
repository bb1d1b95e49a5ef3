"""Steps by real engines against plain torch: unevenly many labels, every ZeRO stage, Muon, z-loss, chunks, bf16."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from numeric_steps import CASES, LENGTH, MODEL, STEPS, VOCABULARY, global_batch, micro_size
from small_runs import LIMIT_SECONDS, ROOT, free_port
from torch.nn import functional

from training.losses import ChunkedLosses, computes_losses, summed_losses
from training.model import build, configuration


def fresh_model():
    return build(configuration(MODEL, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=0), seed=0)


@pytest.fixture(scope="module", params=[1, 2])
def computed(request, tmp_path_factory):
    """Losses and norms of all cases, by so many processes."""
    path = tmp_path_factory.mktemp("steps") / "results.json"
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(request.param)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "numeric_steps.py"), str(path)]
    jobs = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(request.param)
    ]
    try:
        assert [job.wait(LIMIT_SECONDS) for job in jobs] == [0] * request.param
    finally:
        for job in jobs:
            job.kill()
    return json.loads(path.read_text()) | {"world_size": request.param}


class PlainMuon:
    """Momentum, Nesterov's look ahead, five Newton-Schulz steps: as Keller Jordan tells it, in fp32."""

    def __init__(self, matrices, settings):
        self.matrices, self.settings = matrices, settings
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self):
        rate, beta = self.settings.muon_learning_rate, self.settings.muon_momentum
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            momentum.mul_(beta).add_(matrix.grad, alpha=1 - beta)
            update = self.orthogonal((1 - beta) * matrix.grad + beta * momentum)
            rows, columns = matrix.shape
            matrix.mul_(1 - rate * self.settings.weight_decay)
            matrix.sub_(rate * math.sqrt(max(1, rows / columns)) * update)

    @staticmethod
    def orthogonal(matrix):
        wide = matrix.shape[0] <= matrix.shape[1]
        x = (matrix if wide else matrix.T) / (matrix.norm() + 1e-7)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x if wide else x.T


def by_hand(case):
    """Losses and gradient norms of the same steps on one big batch, by plain torch."""
    model, settings = fresh_model(), case.optimizer
    named = dict(model.named_parameters())
    blocks = [one for name, one in named.items() if settings.kind == "muon" and ".layers." in name and one.ndim == 2]
    muon = PlainMuon(blocks, settings)
    others = [one for one in model.parameters() if not any(one is block for block in blocks)]
    groups = [
        {"params": [one for one in others if one.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [one for one in others if one.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    adam, rows = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon), []
    for step in range(STEPS):
        batch = global_batch(step)
        known = batch["labels"] != -100
        logits = model(input_ids=batch["input_ids"]).logits[known]
        nats = functional.cross_entropy(logits, batch["labels"][known])
        (nats + settings.z_loss * logits.logsumexp(-1).square().mean()).backward()
        most = 1.0 if settings.kind == "adamw" else math.inf
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        adam.step()
        muon.step()
        model.zero_grad()
        rows.append((nats.item(), norm.item()))
    return rows


@pytest.mark.parametrize("name", [name for name in CASES if "bf16" not in name])
def test_every_way_of_computing_steps_is_that_of_one_big_batch(computed, name):
    expected = by_hand(CASES[name])
    found = computed[name]
    tolerance = 1e-4 if "muon" in name else 1e-5
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=tolerance)
    if CASES[name].stage:
        norms = [row[1] for row in expected]
        # Muon's products in bf16 change weights by their last bits, and so what later steps find.
        near = pytest.approx(norms, rel=0.02) if "muon" in name else pytest.approx(norms, abs=1e-4)
        assert [row[1] for row in found] == near
        assert found[0][1] == pytest.approx(norms[0], abs=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_bf16_weights_have_the_sums_of_their_gradients_in_fp32(computed, stage):
    """As plain torch does it: bf16 forward and backward, the gradient of each micro-batch added in fp32."""
    settings = CASES[f"bf16_weights_{stage}"].optimizer
    masters, model = fresh_model(), fresh_model().to(torch.bfloat16)
    groups = [
        {"params": [one for one in masters.parameters() if one.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [one for one in masters.parameters() if one.ndim < 2], "weight_decay": 0.0},
    ]
    betas, rows = (settings.beta1, settings.beta2), []
    adam = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon)
    for step in range(STEPS):
        batch, nats = global_batch(step), 0.0
        count = (batch["labels"] != -100).sum()
        for ids, labels in zip(
            *(one.split(micro_size(computed["world_size"])) for one in batch.values()), strict=True
        ):
            logits = model(input_ids=ids).logits.float().flatten(0, 1)
            loss = functional.cross_entropy(logits, labels.flatten(), reduction="sum") / count
            loss.backward()
            nats += loss.item()
            for master, one in zip(masters.parameters(), model.parameters(), strict=True):
                master.grad = one.grad.float() if master.grad is None else master.grad + one.grad.float()
                one.grad = None
        norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for master, one in zip(masters.parameters(), model.parameters(), strict=True):
                one.copy_(master)
        rows.append((nats, norm.item()))
    found = computed[f"bf16_weights_{stage}"]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in rows], abs=1e-3)
    assert [row[1] for row in found] == pytest.approx([row[1] for row in rows], rel=1e-2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_gradients_of_many_micro_batches_are_added_up_and_reduced_in_fp32(computed, stage):
    """Of equal gradients a sum in bf16 takes in only some 256: what comes is below half an ulp then."""
    found = computed["accumulated"][str(stage)]
    assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-2)
    assert found["reduced"] == ["torch.float32"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_remembers_the_sums_in_fp32_of_bf16_gradients(computed, stage):
    found = computed["accumulated by muon"][str(stage)]
    few, many = found["momenta"]
    assert len(few) > 0
    assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-2)
    assert many == pytest.approx(few, rel=1e-2)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_that_is_refused_does_not_enter_muons_momenta(computed, stage, weights):
    assert computed["refused by muon"][f"{stage} {weights}"]


@pytest.mark.parametrize("name", ["bf16", "bf16_chunks"])
def test_bf16_products_with_fp32_weights_stay_near_fp32(computed, name):
    near = [row[0] for row in computed["plain" if name == "bf16" else "z_loss"]]
    found = [row[0] for row in computed[name]]
    assert found != near
    assert found == pytest.approx(near, abs=0.03)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
def test_chunks_have_loss_and_gradients_of_the_whole(chunk, z_loss, biased):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=generator) for size in ((20, 8), (30, 8), (30,)))
    labels = torch.randint(0, 30, (20,), generator=generator)
    labels[::3] = -100
    ways = []
    for chunked in (False, True):
        inputs = [one.clone().requires_grad_() for one in ((hidden, weight, bias) if biased else (hidden, weight))]
        if chunked:
            of_bias = inputs[2] if biased else None
            total, nats = ChunkedLosses.apply(inputs[0], inputs[1], of_bias, labels, chunk, z_loss, True)
        else:
            total, nats = summed_losses(functional.linear(*inputs), labels, z_loss)
        (total / 13).backward()
        ways.append([total.detach(), nats, *(one.grad for one in inputs)])
    known = labels != -100
    logits = functional.linear(hidden, weight, bias if biased else None)[known]
    torch.testing.assert_close(ways[0][1], functional.cross_entropy(logits, labels[known], reduction="sum"))
    for whole, parts in zip(*ways, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_gradients_of_chunks_in_bf16_are_scaled_in_fp32():
    """A scale that is rounded to bf16 would make all of them too large by the same part."""
    hidden = torch.randn(64, 8).bfloat16().requires_grad_()
    weight, labels, scale = torch.randn(30, 8).bfloat16(), torch.randint(0, 30, (64,)), torch.tensor(1 / 196_608)
    for factor in (1.0, scale):
        total, _ = ChunkedLosses.apply(hidden, weight, None, labels, 16, 0.0, True)
        (total * factor).backward()
        if factor == 1.0:
            whole, hidden.grad = hidden.grad.float(), None
    assert torch.equal(hidden.grad, (whole * scale).bfloat16())


def test_chunks_never_hold_the_logits_of_all_tokens():
    tokens, hidden_size, vocabulary = 512, 8, 4000
    hidden, weight = torch.randn(tokens, hidden_size), torch.randn(vocabulary, hidden_size, requires_grad=True)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            nonlocal largest
            made = function(*arguments, **(named or {}))
            largest = max(largest, made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    labels = torch.zeros(tokens, dtype=torch.long)
    with Sizes():
        ChunkedLosses.apply(hidden, weight, None, labels, 16, 0.0, True)[0].backward()
    assert largest <= 16 * vocabulary


def test_loss_of_a_mixture_of_experts_is_that_of_transformers_with_what_balances_the_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=50, output_router_logits=True, **sizes)
    model, rows = MixtralForCausalLM(config).train(), torch.arange(24).view(2, 12) % 50
    expected = model(input_ids=rows, labels=rows, use_cache=False)
    assert expected.aux_loss > 0
    computes_losses(model, chunk_tokens=0, z_loss=0.0, autocast=None)
    total, nats = model(input_ids=rows[:, :-1], target_ids=rows[:, 1:], use_cache=False)
    balance = model(input_ids=rows[:, :-1], use_cache=False).aux_loss
    torch.testing.assert_close(total, nats + 22 * config.router_aux_loss_coef * balance)
    torch.testing.assert_close(nats / 22, expected.loss - config.router_aux_loss_coef * expected.aux_loss)
    with pytest.raises(ValueError, match=r"loss of routers .* is not in chunks"):
        computes_losses(MixtralForCausalLM(config), chunk_tokens=3, z_loss=0.0, autocast=None)


def test_model_is_as_before_without_labels_and_heads_of_other_kinds_are_refused():
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    rows, plain = torch.arange(8).view(1, 8), fresh_model()
    with_losses = computes_losses(fresh_model(), chunk_tokens=3, z_loss=0.0, autocast=None)
    assert torch.equal(with_losses(input_ids=rows).logits, plain(input_ids=rows).logits)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    scaled = CohereForCausalLM(CohereConfig(vocab_size=50, logit_scale=0.1, **small))
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=50, num_key_value_heads=2, head_dim=16, **small))
    for model in (scaled, capped):
        with pytest.raises(ValueError, match="computes its logits in its own way"):
            computes_losses(model, chunk_tokens=3, z_loss=0.0, autocast=None)
