"""What a run shows of itself beside its metrics: the settings for it."""

import math
from dataclasses import dataclass

NOT_OF_PROJECTS = "/\\#?%:"
PROMPTS = ("def fibonacci(n):", "import ", "class Stack:")


@dataclass(frozen=True)
class Watch:
    """What is shown while a run trains; nothing here changes what it computes.

    Args:
        sample_tokens: tokens that the model writes after each prompt at every evaluation; 0 = none.
        prompts: what it continues; masked models and encoder-decoders fill in what is hidden of them.
        temperature: of the samples; 0 = always the most probable token.
        wandb: project of Weights & Biases to send the metrics to; needs the package wandb.
    """

    sample_tokens: int = 48
    prompts: tuple[str, ...] = PROMPTS
    temperature: float = 0.8
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.sample_tokens < 0:
            raise ValueError(f"watch.sample_tokens {self.sample_tokens} is below 0; 0 writes no samples")
        if not 0 <= self.temperature < math.inf:
            wrong = f"watch.temperature {self.temperature} is not 0 or more and finite"
            raise ValueError(f"{wrong}; 0 takes the most probable token")
        if set(self.wandb or "") & set(NOT_OF_PROJECTS):
            wrong = f"watch.wandb {self.wandb!r} has one of the characters {NOT_OF_PROJECTS}"
            raise ValueError(f"{wrong}, which no project of Weights & Biases may have; choose another name")
