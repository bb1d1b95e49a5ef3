"""The loops that training/train.py is compared with: bare PyTorch and Hugging Face's Trainer. Not part of the project.

Reads a JSON object of settings from its first argument: `loop` (bare or trainer), `model` (its JSON configuration),
`shards`, `length`, `sequences`, `micro`, `steps`, `warmup_steps`, `precision` (fp32 or bf16), `compile`. Prints the
seconds of each step as JSON.
"""

import json
import sys
import time
from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tokenizer.shards import TokenStream

LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIPPING = 2e-3, 0.1, (0.9, 0.95), 1.0


def rows_of(settings):
    """All windows of the shards, in order: int64 (n, length + 1)."""
    stream, length = TokenStream(settings["shards"]), settings["length"]
    whole = np.empty(len(stream), stream.dtype)
    stream.read(0, whole)
    count = (len(whole) - 1) // length
    places = np.arange(count)[:, None] * length + np.arange(length + 1)
    return torch.from_numpy(whole.astype(np.int64)[places])


def fresh_model(settings):
    torch.manual_seed(0)
    record = json.loads(settings["model"])
    config = AutoConfig.for_model(record.pop("model_type"), **record)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    return model


def bare(settings):
    """Forward, backward, clip, AdamW; as fast as plain torch goes.

    Attention is told that it is causal: a compiled model would be given a mask, which slows it down.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, rows = fresh_model(settings).to(device), rows_of(settings)
    AttentionInterface.register("causal", sdpa_attention_forward)
    model.set_attn_implementation("causal")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    in_bf16 = settings["precision"] == "bf16"
    micro, sequences = settings["micro"], settings["sequences"]

    def loss_of(part):
        with torch.autocast(device, torch.bfloat16) if in_bf16 else nullcontext():
            logits = model(input_ids=part[:, :-1]).logits
            return functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten())

    if settings["compile"]:
        loss_of = torch.compile(loss_of)
    seconds = []
    for step in range(settings["warmup_steps"] + settings["steps"]):
        begun = time.perf_counter()
        for number in range(sequences // micro):
            first = (step * sequences + number * micro) % (len(rows) - micro)
            loss = loss_of(rows[first : first + micro].to(device, non_blocking=True))
            (loss * micro / sequences).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begun)
        print(f"{seconds[-1]:.4f} s", file=sys.stderr, flush=True)
    return seconds[settings["warmup_steps"] :]


def trainer(settings):
    """Trainer as its documentation shows it, with nothing to log, save or evaluate."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, logging

    logging.set_verbosity_error()
    rows, ends = rows_of(settings), []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments, **named):
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir="trainer_output",
        per_device_train_batch_size=settings["micro"],
        gradient_accumulation_steps=settings["sequences"] // settings["micro"],
        max_steps=settings["warmup_steps"] + settings["steps"],
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIPPING,
        optim="adamw_torch_fused",
        lr_scheduler_type="cosine",
        use_cpu=not torch.cuda.is_available(),
        bf16=settings["precision"] == "bf16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
    )
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
    Trainer(model=fresh_model(settings), args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return np.diff(ends)[settings["warmup_steps"] - 1 :].tolist()


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    if not torch.cuda.is_available():
        torch.set_num_threads(chosen["threads"])
    print(json.dumps({"bare": bare, "trainer": trainer}[chosen["loop"]](chosen)))
