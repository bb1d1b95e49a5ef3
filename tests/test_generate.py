"""Generation against `transformers`' own, alone and in batches; filling in the middle, streams, files of prompts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_shards import documents, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, LlamaConfig, MambaConfig, RecurrentGemmaConfig, T5Config, ViTConfig

from tokenizer.encode import SPECIAL_TOKENS
from training.config import Model
from training.decoding import Sampling, choose, generator_for
from training.exported import context_of, load
from training.generate import FILL_TOKENS, Writer, main
from training.model import OBJECTIVE, build, configuration
from training.prompts import Request, read_requests

ROOT = Path(__file__).parent.parent
PROMPTS = ["def add(", "def join(left, other):\n    left", "", "x", "return total\n\ndef scale(right, other):"]
CONTEXT = 64


def save(folder, special_tokens, config=""):
    """A random model whose choices are far apart, and a tokenizer with the given special tokens.

    `config` is the JSON text of another model than a llama.
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents(50, seed=1), trainer)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS[0])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    shape = Model(hidden_size=32, layers=2, heads=2, config=config)
    vocab_size = tokenizer.get_vocab_size()
    model = build(configuration(shape, vocab_size=vocab_size, context_tokens=CONTEXT, end_of_text_id=0), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def set_objective(folder, objective):
    """Let a saved model be one of ours, as exports are."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {OBJECTIVE: objective}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A model without tokens to fill in the middle."""
    return save(tmp_path_factory.mktemp("plain"), SPECIAL_TOKENS[:1])


@pytest.fixture(scope="module")
def writer(folder):
    return Writer(*load(folder), max_new_tokens=16, sampling=Sampling(), seed=0)


def with_sampling(writer, temperature, top_p, seed=0):
    settings = {"max_new_tokens": 16, "sampling": Sampling(temperature, top_p), "seed": seed}
    return Writer(writer.network, writer.tokenizer, **settings)


def by_transformers(writer, row):
    """What `transformers` writes greedily after the ids of one prompt, alone and without padding."""
    import torch

    inputs = torch.tensor([row])
    network = writer.network
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
    written = network.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    return writer.tokenizer.decode(written[0, len(row) :], skip_special_tokens=True)


def test_greedy_is_that_of_transformers_alone_and_in_a_batch(writer):
    batch = [(Request(prompt), 0) for prompt in PROMPTS]
    expected = [by_transformers(writer, writer.rows_of(request)) for request, _ in batch]
    assert writer.complete(batch) == expected
    assert [writer.complete([one])[0] for one in batch] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2}, None),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": CONTEXT}, CONTEXT),
    ],
)
def test_models_without_the_usual_name_for_their_context(tmp_path, caplog, config, context):
    network, tokenizer = load(save(tmp_path, SPECIAL_TOKENS, json.dumps(config)))
    assert context_of(network.config) == context
    settings = {"max_new_tokens": 16, "sampling": Sampling(), "seed": 0}
    one = Writer(network, tokenizer, **settings)
    long = Request("def add(left, other):\n" * 20)
    row = tokenizer(long.prompt)["input_ids"]
    assert one.rows_of(long) == (row[-(context - 16) :] if context else row)
    told = (
        f"a prompt of {len(row):,} tokens loses its beginning: there is room for {(context or 0) - 16} in the model's"
    )
    assert (told in caplog.text) == bool(context)
    batch = [(Request(prompt), 0) for prompt in PROMPTS]
    assert one.complete(batch) == [by_transformers(one, one.rows_of(request)) for request, _ in batch]
    middle = one.rows_of(Request("a " * 100, "b"))
    assert len(middle) == (context - 16 if context else len(tokenizer("a " * 100)["input_ids"]) + 4)


def test_completion_ends_at_the_end_of_text(writer):
    """The token that would come third is made the one that ends texts."""
    request = (Request("def add("), 0)
    ids = [int(chosen[0]) for chosen in writer._tokens([request])]
    cut = with_sampling(writer, 0.0, 1.0)
    cut.end_id = next(one for one in ids if one != ids[0])
    place = ids.index(cut.end_id)
    assert [int(chosen[0]) for chosen in cut._tokens([request])] == ids[: place + 1]
    assert cut.complete([request, (Request("x"), 0)])[0] == writer.tokenizer.decode(ids[:place])


def test_completion_ends_where_the_next_file_of_a_repository_begins(writer):
    request = (Request("def add("), 0)
    ids = [int(chosen[0]) for chosen in writer._tokens([request])]
    cut = with_sampling(writer, 0.0, 1.0)
    names = {name: writer.tokenizer.get_vocab()[name] for name in ("<repo_name>", "<file_sep>")}
    assert sorted(cut.next_file) == sorted(names.values())
    cut.next_file = [next(one for one in ids if one != ids[0])]
    place = ids.index(cut.next_file[0])
    assert cut.complete([request])[0] == writer.tokenizer.decode(ids[:place])


def test_damaged_weights_and_a_tokenizer_without_an_end_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"the weights in .* cannot be read"):
        load(tmp_path / "model")
    network, tokenizer = load(folder)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="names no token that ends a text"):
        Writer(network, tokenizer, max_new_tokens=4, sampling=Sampling(), seed=0)


@pytest.mark.parametrize(
    ("name", "changed", "line"),
    [
        (
            "config.json",
            {"num_hidden_layers": 3},
            "the weights in .* cannot be read: model.layers.2.* is missing, and 8",
        ),
        ("config.json", {"intermediate_size": 64}, "the weights in .* has another shape than config.json says, and 5"),
        ("config.json", {"hidden_size": "x"}, "config.json in .* cannot be read"),
        ("tokenizer.json", {}, "the tokenizer in .* cannot be read"),
    ],
)
def test_folder_whose_parts_do_not_fit_is_refused_in_a_line(folder, tmp_path, name, changed, line):
    path = shutil.copytree(folder, tmp_path / "model") / name
    path.write_text(json.dumps((json.loads(path.read_text()) | changed) if changed else {}))
    with pytest.raises(ValueError, match=line) as told:
        load(tmp_path / "model")
    assert "\n" not in str(told.value)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    make_tokenizer(tmp_path / "other", vocab_size=400)
    shutil.copy(tmp_path / "other" / "tokenizer.json", copy / "tokenizer.json")
    with pytest.raises(ValueError, match="it has 324 tokens and the model 300"):
        load(copy)


def test_samples_depend_on_seed_and_prompt_and_not_on_their_neighbours(writer):
    sampled = with_sampling(writer, 1.0, 0.95)
    batch = [(Request(prompt), number) for prompt in PROMPTS for number in range(2)]
    together = sampled.complete(batch)
    assert [sampled.complete([one])[0] for one in batch] == together
    assert sampled.complete(batch[::-1])[::-1] == together
    assert len(set(together)) == len(together)
    assert with_sampling(writer, 1.0, 0.95, seed=1).complete(batch) != together


def test_weights_in_16_bits_are_computed_with_in_32_on_cpus(folder, tmp_path, monkeypatch):
    """So that padding changes no completion, as it did some of these samples."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    copy = shutil.copytree(folder, tmp_path / "model")
    load(folder)[0].bfloat16().save_pretrained(copy)
    halved = with_sampling(Writer(*load(copy), max_new_tokens=16, sampling=Sampling(), seed=0), 0.8, 0.95)
    text = "def add(left, other):\n    left = left + 1"
    batch = [(Request(text[: 5 + 2 * number]), 0) for number in range(16)]
    together = [written for begin in (0, 8) for written in halved.complete(batch[begin : begin + 8])]
    assert [halved.complete([one])[0] for one in batch] == together


@pytest.mark.parametrize("top_p", [0.3, 0.6, 1.0])
def test_draws_follow_the_truncated_distribution(top_p):
    """Frequencies of many draws against probabilities that are cut and divided in plain Python."""
    import torch

    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])
    probabilities = (logits / 0.7).softmax(-1).tolist()
    order = sorted(range(5), key=lambda token: -probabilities[token])
    kept, total = [], 0.0
    for token in order:
        if total < top_p:
            kept.append(token)
            total += probabilities[token]
    draws = 4000
    generators = [generator_for("draw", number) for number in range(draws)]
    chosen = choose(logits.expand(draws, -1), Sampling(0.7, top_p), generators).tolist()
    assert set(chosen) <= set(kept)
    for token in kept:
        assert chosen.count(token) / draws == pytest.approx(probabilities[token] / total, abs=0.03)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1e-300), (5e-324, 1.0), (1e-38, 1.0), (1e-38, 1e-300)])
def test_the_least_temperature_and_top_p_take_the_most_probable_token(temperature, top_p):
    import torch

    logits = torch.tensor([[1.0, 50.0, 3.0, 2.0], [-90.0, -3e38, -1e38, -91.0]])
    generators = [generator_for(number) for number in range(2)]
    assert choose(logits, Sampling(temperature, top_p), generators).tolist() == [1, 0]


def test_stream_gives_the_same_text_in_whole_characters(writer):
    for prompt in PROMPTS:
        for one in (writer, with_sampling(writer, 1.0, 1.0)):
            pieces = list(one.pieces(Request(prompt), 0))
            assert "".join(pieces) == one.complete([(Request(prompt), 0)])[0]
    assert len(pieces) > 2


def test_middle_is_asked_for_between_prefix_and_suffix(writer, plain_folder):
    ids = {name: writer.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    prefix, suffix = (writer.tokenizer(text)["input_ids"] for text in ("def add(left", "return left"))
    row = writer.rows_of(Request("def add(left", "return left"))
    assert row == [ids["<fim_prefix>"], *prefix, ids["<fim_suffix>"], *suffix, ids["<fim_middle>"]]
    long = writer.rows_of(Request("a b " * 100 + "def add(left", "return left" + " c d" * 100))
    assert len(long) == CONTEXT - 16
    assert long[0] == row[0]
    assert long[-1] == row[-1]
    place = long.index(ids["<fim_suffix>"])
    assert long[place - 2 : place] == prefix[-2:]
    assert long[place + 1 :][: len(suffix)] == suffix
    assert writer.complete([(Request("def add(left", "return left"), 0)]) == [by_transformers(writer, row)]
    plain = Writer(*load(plain_folder), max_new_tokens=4, sampling=Sampling(), seed=0)
    with pytest.raises(ValueError, match="no tokens to fill in the middle"):
        plain.rows_of(Request("a", "b"))


@pytest.mark.parametrize(("objective", "told"), [("causal", True), ("fill_in_the_middle", False), (None, False)])
def test_middle_is_told_to_be_noise_where_a_model_never_filled_one_in(folder, tmp_path, caplog, objective, told):
    copy = shutil.copytree(folder, tmp_path / "model")
    if objective:
        set_objective(copy, objective)
    main(model=str(copy), prompt=["def add("], suffix="return", max_new_tokens=2)
    line = "trained with objective.kind causal, not fill_in_the_middle: expect noise before a suffix"
    assert (line in caplog.text) == told


def test_long_prompt_loses_its_beginning(writer):
    ids = writer.tokenizer("def add(left, other):\n" * 20)["input_ids"]
    assert writer.rows_of(Request("def add(left, other):\n" * 20)) == ids[-(CONTEXT - 16) :]
    assert writer.rows_of(Request("")) == [0]


def test_prompts_are_encoded_as_shards_are_and_those_of_other_models_as_theirs(folder, tmp_path):
    """The tokenizer puts a token before a text and one after it, which ends texts."""
    copy = shutil.copytree(folder, tmp_path / "model")
    path = str(copy / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    end = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, 0)])
    tokenizer.save(path)
    text, suffix = "def add(", " return"
    ids, more = (tokenizer.encode(one, add_special_tokens=False).ids for one in (text, suffix))
    before, then, middle = (tokenizer.token_to_id(name) for name in FILL_TOKENS[0])
    asked = (Request(text), Request(text, suffix), Request(""), Request(f"{text}<repo_name>"), Request("a " * 99))
    for begin in ([0], []):
        one = Writer(*load(copy), max_new_tokens=16, sampling=Sampling(), seed=0)
        rows = [one.rows_of(request) for request in asked]
        assert rows[0] == begin + ids
        assert rows[1] == [*begin, before, *ids, then, *more, middle]
        assert rows[2] == [0]
        assert rows[3] == [*begin, *ids, tokenizer.token_to_id("<repo_name>")]
        assert len(rows[4]) == CONTEXT - 16
        set_objective(copy, "causal")


def test_words_are_split_as_the_tokenizer_of_the_shards_does_whatever_the_model(tmp_path):
    """AutoTokenizer splits numbers into digits for this kind of model."""
    shape = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    set_objective(save(tmp_path, SPECIAL_TOKENS, json.dumps(shape)), "causal")
    writer = Writer(*load(tmp_path), max_new_tokens=16, sampling=Sampling(), seed=0)
    text = "x = 1 +  2 # don't café ½ e\u0301\n\n\n    return"
    assert writer.rows_of(Request(text)) == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids


def test_requests_are_read_from_files(tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a\\nb"}\n{"prompt": "c", "suffix": "d"}\n')
    assert list(read_requests(lines)) == [Request("a\nb"), Request("c", "d")]
    (tmp_path / "prompts.txt").write_text("def a(\n\nimport b\n")
    assert list(read_requests(tmp_path / "prompts.txt")) == [Request("def a("), Request("import b")]
    lines.write_text('{"prompt": "a"}\n{"prompt": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"line 2: prompt .* is no Unicode text: surrogates not allowed"):
        list(read_requests(lines))
    wrong = ('{"prompt": null}', '{"prompt": 3}', '{"prompt": "a", "suffix": 1}')
    for broken in ('{"prompt"', "[1]", '{"text": "a"}', "", *wrong):
        lines.write_text(f'{{"prompt": "a"}}\n{broken}\n')
        with pytest.raises(ValueError, match=r"prompts.jsonl, line 2: no JSON object"):
            list(read_requests(lines))


def generate(folder, *options, limit=(), stdout=subprocess.PIPE):
    """`limit` is what stands before the command, and `stdout` where what it prints goes."""
    command = [*limit, sys.executable, str(ROOT / "training" / "generate.py"), "--model", str(folder), *options]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_command_writes_what_the_writer_writes(folder, writer, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "def add(", "suffix": "return"}) + "\n")
    options = ["--prompt", "x", "--prompts", str(tmp_path / "prompts.jsonl"), "--max_new_tokens", "16"]
    options += ["--temperature", "0.9", "--samples", "2", "--output", str(tmp_path / "out.jsonl")]
    wanted = [(request, number) for request in (Request("x"), Request("def add(", "return")) for number in range(2)]
    expected = with_sampling(writer, 0.9, 0.95).complete(wanted)
    done = generate(folder, *options, "--stream")
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in written] == expected
    assert [row.get("suffix") for row in written] == [None, None, "return", "return"]
    assert f"def add({expected[2]}return\n" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_output_is_replaced_when_asked_and_whole(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("dear to someone\n")
    options = ["--prompt", "x", "--max_new_tokens", "2", "--output", str(output)]
    done = generate(folder, *options)
    assert done.returncode == 1
    assert done.stderr == f"error: {output} exists; choose another --output, or --overwrite\n"
    assert output.read_text() == "dear to someone\n"
    done = generate(folder, *options, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["prompt"] == "x"
    assert list(tmp_path.iterdir()) == [output]


def test_what_cannot_be_written_is_told_of_the_output_or_of_the_terminal(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    options = ["--prompt", "x", "--max_new_tokens", "2", "--output", str(output)]
    with open("/dev/full", "w") as full:
        assert generate(folder, *options, stdout=full).stderr == "error: [Errno 28] No space left on device\n"
    done = generate(folder, *options, limit=["prlimit", "--fsize=9"])
    assert done.returncode == 1
    told = f"error: {output} cannot be written: File too large; what came before is in {output}.partial\n"
    assert done.stderr == told
    assert not output.exists()


def test_output_that_is_no_file_is_never_replaced(tmp_path):
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="is no file that can be replaced"):
            main(model=str(config_alone(tmp_path, LlamaConfig())), prompt=["x"], output=str(place), overwrite=True)


ROWS = '{"prompt": "a"}\n' * 12


@pytest.mark.parametrize(
    ("name", "written", "line"),
    [
        ("prompts.jsonl", b"broken\n", "prompts.jsonl, line 1: no JSON object with a text as `prompt`"),
        (
            "prompts.jsonl",
            f"{ROWS}broken\n".encode(),
            "prompts.jsonl, line 13: no JSON object with a text as `prompt`",
        ),
        ("prompts.jsonl", f'{ROWS}{{"prompt": "a", "suffix": "b"}}\n'.encode(), "no tokens to fill in the middle"),
        ("prompts.jsonl", b"", "prompts.jsonl is empty"),
        ("prompts.txt", b"\n \n", "prompts.txt is empty"),
        ("prompts.txt", b"d\xe9f\n", "prompts.txt is not UTF-8; convert it"),
    ],
)
def test_a_fault_in_any_request_leaves_the_output_as_it_was(plain_folder, tmp_path, name, written, line):
    prompts, output = tmp_path / name, tmp_path / "out.jsonl"
    prompts.write_bytes(written)
    output.write_text("as it was")
    options = ["--prompts", str(prompts), "--max_new_tokens", "16", "--output", str(output), "--overwrite"]
    done = generate(plain_folder, *options)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert output.read_text() == "as it was"
    assert sorted(tmp_path.iterdir()) == [output, prompts]


def config_alone(folder, config):
    config.save_pretrained(folder / "config")
    return folder / "config"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (BertConfig(), "is a masked language model (model_type bert); generate needs a causal"),
        (T5Config(), "is an encoder and a decoder (model_type t5)"),
        (ViTConfig(), "is no language model (model_type vit)"),
        (MambaConfig(), "is a model without a cache of keys and values (model_type mamba)"),
        (RecurrentGemmaConfig(), "is a model without a cache of keys and values (model_type recurrent_gemma)"),
    ],
)
def test_models_that_continue_no_text_are_refused(tmp_path, config, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        main(model=str(config_alone(tmp_path, config)), prompt=["x"], output=str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "there is no prompt"),
        (["--prompts", __file__, "--suffix", "x"], "--suffix is of --prompt alone"),
        (["--prompt", "x", "--samples", "2"], "choose a temperature above 0"),
        (["--prompt", "x", "--top_p", "0"], "top_p 0.0 above 0"),
        (["--prompts", "nowhere.txt"], "nowhere.txt is no file"),
        (["--prompt", "x", "--max_new_tokens", "64"], "context of 64 tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, options, line):
    done = generate(folder, *options)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
