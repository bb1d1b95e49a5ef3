"""Prompts -> completions of an exported model: `python training/generate.py --model RUN/export --prompt "def "`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def main(
    *,
    model: str,
    prompt: list[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 0.95,
    samples: int = 1,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Print what a model writes after each prompt.

    Args:
        model: folder that training/export.py wrote (RUN/export).
        prompt: one or more beginnings of text.
        max_new_tokens: bound on each completion; it also ends at the end-of-text token.
        temperature: 0 = always the most probable token; higher is more varied.
        top_p: sample among the most probable tokens of this total probability.
        samples: completions a prompt; more than one needs a temperature above 0.
        seed: of sampling.
        output: also write them here, a JSON object a line with `prompt` and `completion`.
    """
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"{model} holds no model: config.json is missing; export one with training/export.py")
    if not prompt:
        raise ValueError("prompt is empty; give one or more, as --prompt 'def '")
    if samples < 1 or max_new_tokens < 1:
        raise ValueError(f"samples {samples} and max_new_tokens {max_new_tokens} must be 1 or more")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be 0 or more, top_p {top_p} above 0 and at most 1")
    if samples > 1 and temperature == 0:
        raise ValueError(f"{samples} samples at temperature 0 would all be the same; choose a temperature above 0")
    network, tokenizer = load(model)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    several, written = len(prompt) * samples > 1, []
    for text in prompt:
        for number, completion in enumerate(complete(network, tokenizer, text, samples=samples, seed=seed, **options)):
            if several:
                print(f"--- {text!r}, sample {number + 1}" if samples > 1 else f"--- {text!r}")
            print(text + completion, flush=True)
            written.append(json.dumps({"prompt": text, "completion": completion}) + "\n")
    if output:
        Path(output).write_text("".join(written))


def load(folder: str | Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """An exported model, on the GPU if there is one, and its tokenizer; the network is never asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def complete(
    network: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 0.95,
    samples: int = 1,
    seed: int = 0,
) -> Iterator[str]:
    """Completions of one prompt, without the prompt and the end-of-text token.

    An empty prompt begins after an end-of-text token, as documents do in training. Of a prompt that leaves no room
    for `max_new_tokens` in the context, the beginning is cut off.
    """
    import torch

    ids = tokenizer(prompt, return_token_type_ids=False)["input_ids"] or [tokenizer.eos_token_id]
    room = network.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} leaves no room in the model's context of "
            f"{network.config.max_position_embeddings} tokens; choose fewer"
        )
    inputs = torch.tensor([ids[-room:]], device=network.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    with torch.no_grad():
        writer: Any = network
        written = writer.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            num_return_sequences=samples,
            **sampling,
        )
    for row in written[:, inputs.shape[1] :]:
        yield str(tokenizer.decode(row, skip_special_tokens=True))


if __name__ == "__main__":
    run(main)
