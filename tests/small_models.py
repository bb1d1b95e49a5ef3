"""What tests ask of models that they build."""


def counted_flops(step):
    """Operations that torch counts of the matrix products of a function."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()
