"""What a run is: its settings, validated, as groups of the command line (`--model.layers 6`) or of a YAML file.

Nothing here imports torch, so that `--help` answers at once. Every group refuses a value that cannot work with a
ValueError that names the value, the bound and the remedy.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

Architecture = Literal["llama", "gpt2"]
Attention = Literal["sequence", "document"]


def _at_least(bound: float, **values: float) -> None:
    for name, value in values.items():
        if not bound <= value < math.inf:
            wrong = "not finite" if math.isinf(value) else f"below {bound}"
            raise ValueError(f"{name.replace('__', '.')} {value} is {wrong}; choose {bound} or more")


def _fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name.replace('__', '.')} {value} is outside 0 to 1; it is a fraction")


def _decay(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name.replace('__', '.')} {value} is not 0 or more and below 1; try 0.9")


@dataclass(frozen=True)
class Model:
    """Shape of the transformer; the vocabulary comes from the shards, the context from the sequence length.

    Args:
        architecture: llama (RMSNorm, rotary positions, SwiGLU) or gpt2 (LayerNorm, learned positions, GELU).
        hidden_size: width of the residual stream.
        layers: transformer blocks.
        heads: attention heads; divides hidden_size.
        key_value_heads: fewer than heads for grouped-query attention (llama); 0 = as many as heads.
        feed_forward_size: inner width of the feed-forward block; 0 = the architecture's habit (llama: 8/3 of
            hidden_size, rounded up to a multiple of 64; gpt2: 4 times).
        tie_embeddings: the output layer is the embedding matrix.
        dropout: probability, in gpt2 everywhere, in llama of attention weights.
        rope_theta: base of the rotary positions (llama).
        config: instead of all above, any configuration of `transformers`: its JSON file, or a folder with config.json.
            Vocabulary and end of text are those of the shards all the same.
    """

    architecture: Architecture = "llama"
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 0
    feed_forward_size: int = 0
    tie_embeddings: bool = True
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    config: str = ""

    def read(self) -> "Model":
        """The same with `config` as JSON text instead of a path, so that a run's plan holds it whole."""
        if not self.config:
            return self
        where, text = "model.config", self.config
        if not text.startswith("{"):
            path = Path(text)
            path = path / "config.json" if path.is_dir() else path
            if not path.is_file():
                raise ValueError(f"no configuration of a model at {path} (model.config)")
            where, text = str(path), path.read_text()
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {error}") from None
        if not isinstance(record, dict) or "model_type" not in record:
            raise ValueError(f"{where} has no model_type; give the config.json of a `transformers` model")
        return replace(self, config=json.dumps(record, sort_keys=True))

    @property
    def unused(self) -> list[str]:
        """Settings that were given and do not count, as `config` decides."""
        others = [one for one in fields(self) if one.name != "config"] if self.config else []
        return [f"model.{one.name}" for one in others if getattr(self, one.name) != one.default]

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(
                f"model.architecture {self.architecture!r} is none of {', '.join(get_args(Architecture))}"
            )
        _at_least(1, model__hidden_size=self.hidden_size, model__layers=self.layers, model__heads=self.heads)
        _at_least(0, model__key_value_heads=self.key_value_heads, model__feed_forward_size=self.feed_forward_size)
        _fraction(model__dropout=self.dropout)
        _at_least(1, model__rope_theta=self.rope_theta)
        if self.hidden_size % self.heads:
            raise ValueError(f"model.hidden_size {self.hidden_size} is no multiple of model.heads {self.heads}")
        if self.architecture == "llama" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"model.hidden_size / model.heads = {self.hidden_size // self.heads} is odd; rotary positions need "
                "an even head size"
            )
        if self.key_value_heads and (self.architecture != "llama" or self.heads % self.key_value_heads):
            raise ValueError(
                f"model.key_value_heads {self.key_value_heads} must divide model.heads {self.heads} of a llama; "
                "use 0 for as many as heads"
            )


@dataclass(frozen=True)
class Batch:
    """How much one optimizer step sees.

    Args:
        sequence_length: tokens a sequence predicts.
        sequences: sequences a step, over all processes and accumulation steps.
        sequences_per_device: at most so many at once on one device; gradients of the rest are accumulated.
    """

    sequence_length: int = 1024
    sequences: int = 192
    sequences_per_device: int = 12

    def __post_init__(self) -> None:
        _at_least(1, batch__sequences=self.sequences, batch__sequences_per_device=self.sequences_per_device)
        _at_least(2, batch__sequence_length=self.sequence_length)

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.sequences * self.sequence_length

    def micro_size(self, world_size: int) -> int:
        """Sequences a process takes at once: the largest divisor of its share within `sequences_per_device`."""
        if self.sequences % world_size:
            raise ValueError(
                f"batch.sequences {self.sequences} is no multiple of the {world_size} processes; choose one that is"
            )
        share = self.sequences // world_size
        return max(size for size in range(1, min(share, self.sequences_per_device) + 1) if share % size == 0)


@dataclass(frozen=True)
class Data:
    """The order in which a run reads its shards.

    Args:
        weights: of the folders of --shards, in their order; only proportions count. Empty = by their tokens.
        shuffle_tokens: tokens that are shuffled together; 0 = all of a folder. Fewer keep reading local, as remote
            storage and disks that seek need: a quarter of --cache_bytes is a good choice there.
        warmup_length: sequence length of the first steps, batch.sequence_length halved some times; each step still
            reads the same tokens, in more and shorter rows.
        warmup_steps: steps below the full sequence length; each length on the way has equally many. 0 = no warm-up.
    """

    weights: list[float] = field(default_factory=list)
    shuffle_tokens: int = 0
    warmup_length: int = 128
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _at_least(0, data__shuffle_tokens=self.shuffle_tokens, data__warmup_steps=self.warmup_steps)
        _at_least(2, data__warmup_length=self.warmup_length)
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"data.weights {self.weights} must all be above 0 and finite; leave a folder out instead")


@dataclass(frozen=True)
class Objective:
    """What is predicted.

    Args:
        kind: causal (the next token), fill_in_the_middle (the next token, of documents some of which are cut in
            three and have the middle last), masked (hidden tokens, as BERT) or spans (hidden runs, as T5).
        rate: share of documents that fill_in_the_middle rearranges.
        suffix_first: share of these that begin with the suffix (SPM), the others with the prefix (PSM).
        noise: share of tokens that masked and spans hide, above 0 and below 1.
        span_length: mean tokens of a hidden run (spans).
    """

    kind: Literal["causal", "fill_in_the_middle", "masked", "spans"] = "causal"
    rate: float = 0.5
    suffix_first: float = 0.5
    noise: float = 0.15
    span_length: float = 3.0

    def __post_init__(self) -> None:
        _fraction(objective__rate=self.rate, objective__suffix_first=self.suffix_first)
        _at_least(1, objective__span_length=self.span_length)
        if not 0 < self.noise < 1:
            raise ValueError(f"objective.noise {self.noise} is not above 0 and below 1; try 0.15")


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest.

    Args:
        kind: adamw or muon.
        implementation: of adamw: torch's, fused; or DeepSpeed's, fused on GPUs and its CPU Adam where the states are
            offloaded or there is no GPU, which it compiles when they are first used. Equally fast (ARCHITECTURE.md).
        learning_rate: its peak, of AdamW.
        muon_learning_rate: its peak, of Muon.
        muon_momentum: of Muon, with Nesterov's look ahead.
        weight_decay: of matrices; biases and norms have none.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        epsilon: added to the denominator.
        gradient_clipping: bound on the norm of the whole gradient; 0 = none. Muon is never clipped: its updates have
            a norm of their own.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits small; 1e-4 is usual.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    implementation: Literal["torch", "deepspeed"] = "torch"
    learning_rate: float = 5e-4
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    gradient_clipping: float = 1.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        _at_least(0, optimizer__weight_decay=self.weight_decay, optimizer__z_loss=self.z_loss)
        if not 0 <= self.gradient_clipping < math.inf:
            wrong = f"optimizer.gradient_clipping {self.gradient_clipping} is not 0 or more and finite"
            raise ValueError(f"{wrong}; 0 clips nothing")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"optimizer.learning_rate {self.learning_rate} is not above 0 and below 1; try 5e-4")
        if not 0 < self.muon_learning_rate < 1:
            wrong = f"optimizer.muon_learning_rate {self.muon_learning_rate} is not above 0 and below 1"
            raise ValueError(f"{wrong}; try 0.02")
        _decay(optimizer__beta1=self.beta1, optimizer__beta2=self.beta2, optimizer__muon_momentum=self.muon_momentum)
        if self.kind == "muon" and self.implementation != "torch":
            raise ValueError("optimizer.implementation is of adamw; muon is DeepSpeed's anyway, leave it out")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"optimizer.epsilon {self.epsilon} is not above 0 and finite; try 1e-8")


@dataclass(frozen=True)
class Compute:
    """How a step is computed: the arithmetic, and what is traded for memory or speed.

    Args:
        precision: fp32; bf16 (on GPUs bf16 weights with an fp32 master copy, on CPUs fp32 weights and matrix products
            in bf16); fp16 (GPUs, with a loss scale that adapts); auto = bf16 on GPUs, fp32 on CPUs. Gradients are
            accumulated and reduced in fp32 whatever it is, and losses computed in fp32.
        compile: have torch.compile translate the model; needs a C++ compiler, some seconds to minutes at the start.
        checkpoint_activations: keep only the inputs of the blocks and compute them again in the backward pass: a
            third more work for a fraction of the memory.
        loss_chunk_tokens: compute logits and loss for about so many tokens at a time, so that the logits of a
            micro-batch never exist at once; 0 = all at once, which is faster where they fit.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    checkpoint_activations: bool = False
    loss_chunk_tokens: int = 0

    def __post_init__(self) -> None:
        _at_least(0, compute__loss_chunk_tokens=self.loss_chunk_tokens)


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the run: linear warm-up, then as `kind` says.

    Args:
        kind: cosine; wsd (stable, then down in a line over the last part of the run); constant.
        warmup_steps: steps from 0 to the peak; at most half of a short run is spent on them.
        final_fraction: of the peak, reached at the last step (cosine and wsd).
        decay_share: of the steps after the warm-up, spent on going down (wsd); 0 = it never does.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1
    decay_share: float = 0.2

    def __post_init__(self) -> None:
        _at_least(0, schedule__warmup_steps=self.warmup_steps)
        _fraction(schedule__final_fraction=self.final_fraction, schedule__decay_share=self.decay_share)


@dataclass(frozen=True)
class Recipe:
    """All that decides what a step computes; two runs of one recipe on the same data are the same run."""

    model: Model
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule
    seed: int
    compute: Compute = field(default_factory=Compute)
    from_pretrained: str = ""
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    attention: Attention = "sequence"

    def __post_init__(self) -> None:
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed} has more than 64 bits; choose another")
        if self.optimizer.kind == "muon" and self.compute.precision == "fp16":
            raise ValueError("compute.precision fp16 is not of muon, which would remember scaled gradients; use bf16")
        if self.objective.kind == "spans" and not self.model.tie_embeddings:
            raise ValueError(
                "model.tie_embeddings false is not of spans: T5 of `transformers` is always tied; leave it"
            )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Recipe":
        """The inverse of `dataclasses.asdict`."""
        groups: dict[str, Any] = {"model": Model, "batch": Batch, "optimizer": Optimizer, "schedule": Schedule}
        groups |= {"compute": Compute, "data": Data, "objective": Objective}
        found = {name: groups[name](**record.get(name, {})) for name in groups}
        plain = {name: record[name] for name in ("from_pretrained", "attention") if name in record}
        return cls(**found, seed=record["seed"], **plain)

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """Settings in which `other` differs, as "model.layers 4 (was 6)"."""
        mine, theirs = _flat(asdict(self)), _flat(asdict(other))
        return [f"{name} {mine[name]} (was {theirs[name]})" for name in mine if mine[name] != theirs[name]]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
