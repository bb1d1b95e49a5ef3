"""How large a model, on how many tokens: published laws of scaling, as functions.

Compute-optimal (Hoffmann et al. 2022, "Chinchilla"): for C = 6·N·D operations, model and data grow alike, some 20
tokens a parameter. Data-constrained (Muennighoff et al. 2023): of U unique tokens read for D / U epochs,
U + U·R*·(1 - exp(-R / R*)) count like fresh ones, R = D / U - 1 being the repetitions; up to four epochs are nearly
as good as new data, and beyond forty nothing is gained. Parameters beyond what U unique tokens can use
decay alike. Losses are the latter paper's fit, in nats a token of English web text by its tokenizer: code is more
predictable, so that they order choices and do not foretell a curve.
"""

import math

TOKENS_PER_PARAMETER = 20.0
FREE_EPOCHS, MOST_EPOCHS = 4.0, 40.0
REPETITION_SCALE, EXCESS_SCALE = 15.387756, 5.309743
FLOOR, PARAMETER_TERM, TOKEN_TERM, EXPONENT = 1.87, 521.0, 1488.0, 0.3526596
PARAMETERS_PER_TOKEN = 0.051  # that U unique tokens can use, by the same fit


def optimal_size(flops: float) -> tuple[float, float]:
    """Parameters and tokens that make the best of so many operations, if data is no bound."""
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return parameters, parameters * TOKENS_PER_PARAMETER


def best_of_data(flops: float, unique_tokens: float) -> tuple[float, float]:
    """Parameters and tokens, repetitions included, of the lowest expected loss that so many operations reach.

    No token is read more than MOST_EPOCHS times, whatever operations are left. The loss has one least value along the
    sizes, found to a thousandth by cutting the range of their logarithms.
    """

    def tokens(parameters: float) -> float:
        return min(flops / (6 * parameters), MOST_EPOCHS * unique_tokens)

    def loss(exponent: float) -> float:
        parameters = math.exp(exponent)
        return expected_loss(parameters, tokens(parameters), unique_tokens)

    low, high = 0.0, math.log(flops / 6)  # from one parameter to one token
    while high - low > 1e-3:
        third = (high - low) / 3
        low, high = (low, high - third) if loss(low + third) <= loss(high - third) else (low + third, high)
    parameters = math.exp((low + high) / 2)
    return parameters, tokens(parameters)


def largest_for(unique_tokens: float) -> float:
    """Parameters of the largest model that FREE_EPOCHS over the data train compute-optimally."""
    return unique_tokens * FREE_EPOCHS / TOKENS_PER_PARAMETER


def effective(amount: float, unique: float, scale: float) -> float:
    """What an amount is worth of which only `unique` is new: all of it up to there, then ever less."""
    if amount <= unique:
        return amount
    return unique + unique * scale * (1 - math.exp(-(amount / unique - 1) / scale))


def expected_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Loss of a model trained on `tokens`, of which `unique_tokens` are distinct."""
    useful = effective(parameters, PARAMETERS_PER_TOKEN * min(unique_tokens, tokens), EXCESS_SCALE)
    fresh = effective(tokens, unique_tokens, REPETITION_SCALE)
    return FLOOR + PARAMETER_TERM / useful**EXPONENT + TOKEN_TERM / fresh**EXPONENT
