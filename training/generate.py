"""Prompts -> completions of an exported model: `python training/generate.py --model RUN/export --prompt "def "`."""

import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run
from training.decoding import Sampling, decode
from training.durable import PARTIAL
from training.exported import begin_of, context_of, encoded, load
from training.model import OBJECTIVE
from training.prompts import Request, requests_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Names of the tokens that stand before prefix, suffix and middle: of StarCoder (and this project), SantaCoder, Qwen.
FILL_TOKENS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)
# Names of the tokens that begin another file of a repository, of StarCoder (and this project) and of Qwen.
NEXT_FILE = ("<file_sep>", "<repo_name>", "<|file_sep|>", "<|repo_name|>")
log = logging.getLogger("generate")


def main(
    *,
    model: str,
    prompt: list[str] | None = None,
    suffix: str | None = None,
    prompts: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 0.95,
    samples: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    stream: bool = False,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Print what a model writes after each prompt, or between a prompt and a suffix.

    What a prompt gets depends on it, the seed and the number of the sample, not on what else is asked: on CPUs, which
    compute in fp32, and on GPUs up to rounding, which for a model in 16 bits may change a token. All that is asked is
    read and checked before the first completion.

    Args:
        model: folder that training/export.py wrote (RUN/export).
        prompt: one or more beginnings of text. The name of a special token in one, or in a suffix, is that token
            (<fim_prefix>, <repo_name>), which it never is in the text of shards.
        suffix: fill in the middle: what stands between each prompt and this, which a model learns by --objective.kind
            fill_in_the_middle.
        prompts: file of more, in UTF-8: .jsonl with objects of `prompt` and optional `suffix`, else a prompt a line.
        max_new_tokens: bound on each completion; it also ends where the text or the file does. A prompt that leaves
            no room for them in the model's context loses its beginning, which is told.
        temperature: 0 = always the most probable token; higher is more varied.
        top_p: sample among the most probable tokens of this total probability.
        samples: completions a prompt; more than one needs a temperature above 0.
        batch_size: completions written at once; memory grows with it.
        seed: of sampling.
        stream: print as it is written, one completion after the other.
        output: also write them here, a JSON object a line with `prompt`, `completion` and `suffix` if there is one;
            it is OUTPUT.partial until all are there.
        overwrite: replace `output` if it exists.
    """
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"{model} holds no model: config.json is missing; export one with training/export.py")
    if min(samples, max_new_tokens, batch_size) < 1:
        raise ValueError(
            f"samples {samples}, max_new_tokens {max_new_tokens} and batch_size {batch_size} must be 1 or more"
        )
    sampling = Sampling(temperature, top_p)
    if samples > 1 and temperature == 0:
        raise ValueError(f"{samples} samples at temperature 0 would all be the same; choose a temperature above 0")
    _check_output(output, overwrite)
    begun = time.monotonic()
    with_suffix = sum(request.suffix is not None for request in requests_of(prompt, suffix, prompts))
    writer = Writer(*load(model), max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    if with_suffix:
        writer.check_middle()
    wanted = ((request, number) for request in requests_of(prompt, suffix, prompts) for number in range(samples))
    several = bool(prompts) or len(prompt or ()) * samples > 1
    completions = 0
    with _written_whole(output) as add:
        while batch := list(itertools.islice(wanted, 1 if stream else batch_size)):
            written = _streamed(writer, batch[0], several, samples) if stream else writer.complete(batch)
            for (request, number), completion in zip(batch, written, strict=True):
                if not stream:
                    _show(request, number, completion, several, samples)
                row = {"prompt": request.prompt, "completion": completion}
                add(json.dumps(row | ({"suffix": request.suffix} if request.suffix is not None else {})) + "\n")
                completions += 1
    if output:
        seconds = time.monotonic() - begun
        log.info("%s completions in %.1f s, written to %s", f"{completions:,}", seconds, output)


class Writer:
    """Continues requests with a model and its tokenizer.

    Args:
        network: a causal model.
        tokenizer: its tokenizer, of `transformers`.
        max_new_tokens: bound on each completion.
        sampling: how tokens are chosen.
        seed: of what is drawn.
    """

    def __init__(
        self,
        network: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.objective = getattr(network.config, OBJECTIVE, "")  # empty: not a model of ours
        self.begin = [] if self.objective else begin_of(tokenizer)
        context = context_of(network.config)
        self.room = (sys.maxsize if context is None else context) - max_new_tokens - len(self.begin)
        if self.room < 1:
            raise ValueError(
                f"max_new_tokens {max_new_tokens} leaves no room in the model's context of {context} tokens; "
                "choose fewer"
            )
        self.network, self.tokenizer, self.sampling, self.seed = network, tokenizer, sampling, seed
        vocabulary = tokenizer.get_vocab()
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer in {tokenizer.name_or_path} names no token that ends a text (eos_token)")
        self.max_new_tokens, self.end_id = max_new_tokens, int(vocabulary[str(tokenizer.eos_token)])
        self.next_file = [int(vocabulary[name]) for name in NEXT_FILE if name in vocabulary]

    def rows_of(self, request: Request) -> list[int]:
        """Token ids that the model continues, cut to the room in its context: the prompt loses its beginning.

        An empty prompt begins after an end-of-text token, as documents do in training; for a model of others, any
        after what its tokenizer begins texts with. To fill in the middle, prefix
        and suffix come first, each after its token, then the token of the middle (the order PSM of Bavarian et al.
        2022); a suffix that is too long is cut to half of the room, at its end.
        """
        ids = self._ids(request.prompt)
        if request.suffix is None:
            self._tell_cut("prompt", "beginning", len(ids), self.room)
            return self.begin + ids[-self.room :] or [self.end_id]
        before, then, middle = self._fill_ids()
        if self.room < 4:
            raise ValueError(f"there is room for {self.room} tokens before the middle, 4 are needed; choose fewer new")
        whole, most = self._ids(request.suffix), (self.room - 3) // 2
        suffix = whole[:most]
        room = self.room - 3 - len(suffix)
        self._tell_cut("suffix", "end", len(whole), most)
        self._tell_cut("prompt", "beginning", len(ids), room)
        return [*self.begin, before, *ids[max(0, len(ids) - room) :], then, *suffix, middle]

    def check_middle(self) -> None:
        """ValueError where the model lacks what any suffix needs; told is one of ours that was not trained for it."""
        self.rows_of(Request("", ""))
        if self.objective not in ("", "fill_in_the_middle"):
            words = (
                "the model was trained with objective.kind %s, not fill_in_the_middle: expect noise before a suffix"
            )
            log.warning(words, self.objective)

    def _tell_cut(self, what: str, side: str, tokens: int, room: int) -> None:
        if tokens > room:
            words = "a %s of %s tokens loses its %s: there is room for %s in the model's context"
            log.warning(words, what, f"{tokens:,}", side, f"{room:,}")

    def complete(self, batch: Sequence[tuple[Request, int]]) -> list[str]:
        """What follows each request; the number beside it distinguishes samples of one request."""
        written = zip(*(chosen.tolist() for chosen in self._tokens(batch)), strict=True)
        return [self._text(ids) for ids in written]

    def pieces(self, request: Request, number: int) -> Iterator[str]:
        """What `complete` gives, in pieces as they are written; characters of several tokens come whole."""
        ids: list[int] = []
        shown = text = ""
        for chosen in self._tokens([(request, number)]):
            ids.append(int(chosen[0]))
            text = self._text(ids)
            if not text.endswith("\ufffd") and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        yield text[len(shown) :]

    def _tokens(self, batch: Sequence[tuple[Request, int]]) -> Iterator[Any]:
        rows = [self.rows_of(request) for request, _ in batch]
        return decode(
            self.network,
            rows,
            max_new_tokens=self.max_new_tokens,
            ends=[self.end_id, *self.next_file],
            sampling=self.sampling,
            seeds=[(self.seed, number, *row) for row, (_, number) in zip(rows, batch, strict=True)],
        )

    def _ids(self, text: str) -> list[int]:
        """As shards are encoded, but that names of special tokens are those tokens: who asks has no other way."""
        return encoded(self.tokenizer, text, add_special_tokens=False)

    def _text(self, ids: Iterable[int]) -> str:
        before_end = itertools.takewhile(lambda one: one != self.end_id and one not in self.next_file, ids)
        return str(self.tokenizer.decode(list(before_end), skip_special_tokens=True))

    def _fill_ids(self) -> tuple[int, int, int]:
        vocabulary = self.tokenizer.get_vocab()
        for names in FILL_TOKENS:
            if all(name in vocabulary for name in names):
                begin, then, middle = (int(vocabulary[name]) for name in names)
                return begin, then, middle
        raise ValueError(
            f"the model's tokenizer has no tokens to fill in the middle ({', '.join(FILL_TOKENS[0])}); leave the "
            "suffix out, or use a model that was trained with them"
        )


def _streamed(writer: Writer, wanted: tuple[Request, int], several: bool, samples: int) -> list[str]:
    request, number = wanted
    print(_heading(request, number, several, samples) + request.prompt, end="", flush=True)
    pieces = []
    for piece in writer.pieces(request, number):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(request.suffix or "", flush=True)
    return ["".join(pieces)]


def _show(request: Request, number: int, completion: str, several: bool, samples: int) -> None:
    heading = _heading(request, number, several, samples)
    print(f"{heading}{request.prompt}{completion}{request.suffix or ''}", flush=True)


def _heading(request: Request, number: int, several: bool, samples: int) -> str:
    if not several:
        return ""
    return f"--- {request.prompt!r}, sample {number + 1}\n" if samples > 1 else f"--- {request.prompt!r}\n"


def _check_output(output: str | None, overwrite: bool) -> None:
    """ValueError where the output would take the place of what must stay."""
    if output and output.endswith("/"):
        raise ValueError(f"{output} names a folder; give --output the name of a file")
    if output and Path(output).exists():
        if not Path(output).is_file():
            raise ValueError(f"{output} is no file that can be replaced; choose another --output")
        if not overwrite:
            raise ValueError(f"{output} exists; choose another --output, or --overwrite")


@contextlib.contextmanager
def _written_whole(output: str | None) -> Iterator[Callable[[str], None]]:
    """What adds a line to a file, which takes its name when all is there; without a name, what keeps nothing."""
    if not output:
        yield lambda line: None
        return
    partial = Path(output + PARTIAL)
    with _fault_of_writing(output):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("")

    def add(line: str) -> None:
        with _fault_of_writing(output), partial.open("a") as file:
            file.write(line)

    yield add
    with _fault_of_writing(output):
        partial.replace(output)


@contextlib.contextmanager
def _fault_of_writing(output: str) -> Iterator[None]:
    """What the system refuses, told of the output."""
    try:
        yield
    except OSError as error:
        wrong = f"{output} cannot be written: {error.strerror}"
        raise OSError(f"{wrong}; what came before is in {output}{PARTIAL}") from error


if __name__ == "__main__":
    run(main)
