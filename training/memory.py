"""How much memory a training step takes on one device, from a model's shape and the way it is cut.

What torch and DeepSpeed 0.19 keep is added up part by part, and the peak is that of three moments: the end of the
forward pass (all activations and the logits), the end of the backward pass (gradients and the buckets that reduce
them), and the optimizer's update (a flat copy of the gradients beside them); on CPUs their sum, since what the
allocator gets back stays with the process in pieces (SCATTERED). On CPUs it is checked against real runs of one
process, and on a GPU (ARCHITECTURE.md), where what the allocator wastes and the CUDA context come on top (RESERVED).
Compilation and checkpoints of activations save less on CPUs than what they keep says: they are counted on GPUs alone.
"""

from dataclasses import dataclass

from training.arithmetic import feed_forward_size, size_of
from training.config import Model

BUCKET_ELEMENTS = 50_000_000  # of infra/deepspeed/*.json
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
# Memory on CPUs for a byte of activations, by stage of ZeRO: malloc keeps what tensors free, also where later ones do
# not fit into it (to let it give all back at once costs half of the speed). Measured with Llama and GPT-2 of 7 to 21
# million parameters and 512 to 2,048 tokens; at stages 1 and 2 some lie where buckets were.
SCATTERED = (1.3, 1.45, 1.5, 1.5)
SCATTERED_ACCUMULATING = (1.9, 2.45, 2.15, 1.95)  # where gradients of a micro-batch stay while the next is computed
# Of a process on CPUs before it has a model: torch, transformers and DeepSpeed (0.58 to 0.63 GB, by stage).
LIBRARIES_BYTES = 0.6e9
# What the copy of a checkpoint finds of the memory that activations left, on CPUs (10 runs, 7 and 19 M parameters).
FOUND_FOR_COPY = 0.25
# Share of a GPU's memory that is left to the CUDA context, NCCL and the allocator's gaps.
RESERVED = 0.1


@dataclass(frozen=True)
class Layout:
    """How a run is cut.

    Args:
        stage: of ZeRO.
        world_size: processes, one a device.
        micro_batch: sequences a device takes at once.
        precision: bf16 or fp32, of weights and activations.
        accumulates: whether a step has several micro-batches.
        offload: optimizer and weights wait in the host's memory (infra/deepspeed/zero3_offload.json).
        on_gpu: on a GPU, or on the CPUs.
        compiled, checkpoints_activations, loss_chunk_tokens: as of `config.Compute`, the former two on GPUs.
    """

    stage: int
    world_size: int
    micro_batch: int
    precision: str
    accumulates: bool = False
    offload: bool = False
    on_gpu: bool = True
    compiled: bool = False
    checkpoints_activations: bool = False
    loss_chunk_tokens: int = 0

    @property
    def weight_bytes(self) -> int:
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what holds them.

    Args:
        start: weights of the whole model, which DeepSpeed puts on each GPU before stage 3 cuts them.
        weights: of the model, and what stage 3 has gathered of them.
        optimizer: fp32 copy and moments.
        gradients: as they wait for the update.
        held_gradients: those of earlier micro-batches during a forward pass.
        buckets: what gradients are reduced in.
        flat_gradients: copies of them during the update.
        activations: what the backward pass needs of the layers.
        logits: and their gradients.
        libraries: code and what it sets up, on CPUs.
        copy: of a checkpoint that is being written; of GPUs it is in the host's memory.
        host: of the machine's memory where what waits is offloaded to it: weights, optimizer and gradients, before
            DeepSpeed's buffers.
        scattered: what a byte of activations takes on CPUs, where what is freed stays with the process in pieces; 0
            where it serves the next moment, as on GPUs.
    """

    start: float
    weights: float
    optimizer: float
    gradients: float
    held_gradients: float
    buckets: float
    flat_gradients: float
    activations: float
    logits: float
    libraries: float
    copy: float
    host: float
    scattered: float

    @property
    def peak(self) -> float:
        """The most at any moment; where memory is not reused, the sum of the passes."""
        kept = self.libraries + self.weights + self.optimizer
        forward = self.activations + self.logits
        backward = self.gradients + self.buckets
        if self.scattered:
            copy = max(0.0, self.copy - FOUND_FOR_COPY * forward)
            return kept + self.scattered * forward + backward + self.flat_gradients + copy
        step = kept + max(self.held_gradients + forward, backward, self.gradients + self.flat_gradients)
        return max(self.start, step)


def estimate(model: Model, *, vocab_size: int, sequence_length: int, layout: Layout) -> Memory:
    """The memory of a step of one device, in bytes."""
    count = size_of(model, vocab_size=vocab_size, context_tokens=sequence_length).parameters
    element, share = layout.weight_bytes, count / layout.world_size
    tokens = layout.micro_batch * sequence_length
    bucket = 4.0 * min(count, BUCKET_ELEMENTS) if layout.stage or layout.on_gpu else 0.0
    whole_gradients = layout.stage < 2
    weights, optimizer = float(element * count), 12 * share
    if layout.stage == 0:
        optimizer = 8.0 * count
    if layout.stage == 3:
        weights = element * share + element * min(count, LIVE_ELEMENTS)
        bucket += 4 * share  # what is reduced is copied into its parts
    gradients = 4 * (count if whole_gradients else share)
    flat = 4 * share if layout.stage else 0
    if layout.offload:
        weights, optimizer, flat = element * min(count, LIVE_ELEMENTS), 0.0, 0.0
    scattered = SCATTERED_ACCUMULATING if layout.accumulates else SCATTERED
    return Memory(
        start=float(element * count),
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        held_gradients=gradients if layout.accumulates else 0.0,
        buckets=bucket,
        flat_gradients=flat,
        activations=activation_bytes(model, tokens, layout),
        logits=logit_bytes(model, tokens, vocab_size, layout),
        libraries=0.0 if layout.on_gpu else LIBRARIES_BYTES,
        copy=0.0 if layout.on_gpu else 12 * (share if layout.stage else count),
        host=(element + 12 + 4) * share if layout.offload else 0.0,
        scattered=0.0 if layout.on_gpu else scattered[layout.stage],
    )


def activation_bytes(model: Model, tokens: int, layout: Layout) -> float:
    """What the backward pass needs of the layers, where attention does not keep its matrix (flash, or SDPA).

    With checkpoints of activations that is the input of each layer, and all of the one that is computed again.
    """
    of_layer, final = _compiled_bytes(model, layout) if layout.compiled else _eager_bytes(model, layout)
    if layout.checkpoints_activations:
        final += of_layer
        of_layer = layout.weight_bytes * model.hidden_size
    return float(tokens * (model.layers * of_layer + final))


def _eager_bytes(model: Model, layout: Layout) -> tuple[float, float]:
    """What autograd keeps of a token in a layer, and behind the last.

    Llama: inputs, normalised inputs and outputs of two norms (6d), queries and attention's output (2d), keys and
    values, four of the feed-forward width. GPT-2: two norms' inputs and outputs (4d), queries, keys, values and output
    (4d), five of the feed-forward width (its GELU is four steps). Norms of Llama keep their input in fp32.
    """
    element, d, inner, heads = layout.weight_bytes, model.hidden_size, feed_forward_size(model), model.heads
    if model.architecture == "gpt2":
        return element * (8 * d + 5 * inner) + 4 * (heads + 4), element * 2 * d
    values = element * (8 * d + 2 * _key_value_size(model) + 4 * inner) + 4 * (heads + 2) + (4 - element) * 2 * d
    return values, element * 3 * d + (4 - element) * d


def _key_value_size(model: Model) -> int:
    heads = model.key_value_heads if model.key_value_heads and model.architecture != "gpt2" else model.heads
    return heads * (model.hidden_size // model.heads)


def _compiled_bytes(model: Model, layout: Layout) -> tuple[float, float]:
    """The same where torch.compile (2.13) chooses what to keep, and computes norms and activations again.

    Inputs and outputs of two norms (4d), queries and attention's output (2d), keys and values, two of the feed-forward
    width, in Llama three.
    """
    element, d, inner = layout.weight_bytes, model.hidden_size, feed_forward_size(model)
    wide = 2 if model.architecture == "gpt2" else 3
    values = 6 * d + 2 * _key_value_size(model) + wide * inner
    return element * values + 4 * (model.heads + 2), element * 2 * d


def logit_bytes(model: Model, tokens: int, vocab_size: int, layout: Layout) -> float:
    """The logits of a micro-batch and their gradients: as they are, in fp32, and the gradient; compiled, as they are.

    In chunks: those of one, gradients of the output layer in fp32, and of its inputs.
    """
    element = layout.weight_bytes
    each = 8 if element == 4 else 10
    if layout.loss_chunk_tokens:
        chunk = min(tokens, layout.loss_chunk_tokens) * vocab_size * each
        return float(chunk + model.hidden_size * (4 * vocab_size + element * tokens))
    return float(tokens * vocab_size * (element if layout.compiled else each))
