"""What a size of model is on some hardware: the way it is cut, its memory, speed and reach."""

from dataclasses import dataclass, replace

from training import scaling
from training.arithmetic import size_of
from training.config import Batch, Compute, Model
from training.memory import RESERVED, Layout, Memory, estimate

COMPUTED_AGAIN = 4 / 3  # the forward pass, a third of a step, where activations are checkpointed
GOOD_MICRO_BATCH, MOST_MICRO_BATCH = 4, 64


@dataclass(frozen=True)
class Hardware:
    """What there is: `gpus` 0 means the CPUs of this machine, as one process."""

    gpus: int
    device: str
    memory_bytes: float
    peak_flops: float
    mfu: float
    hours: float

    @property
    def devices(self) -> int:
        return max(1, self.gpus)

    @property
    def flops(self) -> float:
        """Operations that training gets done a second."""
        return self.devices * self.peak_flops * self.mfu

    @property
    def usable_bytes(self) -> float:
        return self.memory_bytes * (1 - RESERVED)


@dataclass(frozen=True)
class Choice:
    """One size on the hardware: what it reaches in the hours given, or before that where more epochs gain nothing.

    The layout is None where it does not fit. Offloaded, its speed is an upper bound: traffic with the host is not
    counted. `host_bytes` are what all processes then keep there.
    """

    name: str
    parameters: int
    sequence_length: int
    layout: Layout | None
    memory_bytes: float
    host_bytes: float
    tokens_per_second: float
    hours: float
    tokens: float
    epochs: float
    optimal_hours: float
    expected_loss: float

    @property
    def is_offloaded(self) -> bool:
        return self.layout is not None and self.layout.offload


def choice(
    name: str,
    model: Model,
    batch: Batch,
    compute: Compute,
    vocab_size: int,
    unique_tokens: int,
    hardware: Hardware,
) -> Choice:
    """What one size is on the hardware, with no token read more than MOST_EPOCHS times."""
    size = size_of(model, vocab_size=vocab_size, context_tokens=batch.sequence_length)
    layout, memory = best_layout(model, vocab_size, batch, compute, hardware)
    work = size.flops_per_token(batch.sequence_length) * (COMPUTED_AGAIN if compute.checkpoint_activations else 1)
    speed = hardware.flops / work
    tokens = min(speed * hardware.hours * 3600, scaling.MOST_EPOCHS * unique_tokens)
    optimal = scaling.TOKENS_PER_PARAMETER * size.parameters
    return Choice(
        name=name,
        parameters=size.parameters,
        sequence_length=batch.sequence_length,
        layout=layout,
        memory_bytes=memory.peak,
        host_bytes=hardware.devices * memory.host,
        tokens_per_second=speed,
        hours=tokens / speed / 3600,
        tokens=tokens,
        epochs=tokens / unique_tokens,
        optimal_hours=optimal / speed / 3600,
        expected_loss=scaling.expected_loss(size.parameters, tokens, unique_tokens),
    )


def best_layout(
    model: Model, vocab_size: int, batch: Batch, compute: Compute, hardware: Hardware
) -> tuple[Layout | None, Memory]:
    """The lowest ZeRO stage at which a good micro-batch fits, else the stage with the largest; None if none does.

    Micro-batches divide a device's share of the step, as those of `Batch.micro_size`. Offloading to the host comes
    last. With None comes the memory of the least demanding layout tried.
    """
    on_gpu = hardware.gpus > 0
    share = max(1, batch.sequences // hardware.devices)
    micro_batches = [size for size in range(1, min(share, MOST_MICRO_BATCH) + 1) if share % size == 0]
    good = min(GOOD_MICRO_BATCH, micro_batches[-1])
    first = Layout(
        *(1, hardware.devices, 1, "bf16" if on_gpu else "fp32"),
        on_gpu=on_gpu,
        compiled=on_gpu and compute.compile,
        checkpoints_activations=on_gpu and compute.checkpoint_activations,
        loss_chunk_tokens=compute.loss_chunk_tokens,
    )
    candidates = [replace(first, stage=stage) for stage in ((1, 2, 3) if hardware.devices > 1 else (1,))]
    if on_gpu:
        candidates.append(replace(first, stage=3, offload=True))
    tried: list[tuple[Layout, Memory]] = []
    for candidate in candidates:
        for micro in micro_batches:
            layout = replace(candidate, micro_batch=micro, accumulates=micro < share)
            memory = estimate(model, vocab_size=vocab_size, sequence_length=batch.sequence_length, layout=layout)
            tried.append((layout, memory))
        fitting = [one for one in tried if one[1].peak <= hardware.usable_bytes]
        best = max(fitting, key=lambda one: one[0].micro_batch, default=None)
        if best and best[0].micro_batch >= good:
            return best
    return best or (None, min((memory for _, memory in tried), key=lambda memory: memory.peak))
