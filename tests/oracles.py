"""What the fast code must agree with: the definitions of this project in plain Python, slow and plain to see."""

import re

SHINGLE_WORDS = 5


def shingles_of(text):
    r"""The set of all runs of five words, the matches of `\w+`; a shorter text has the one run of all its words."""
    words = re.findall(r"\w+", text)
    if len(words) < SHINGLE_WORDS:
        return {tuple(words)} if words else set()
    return {tuple(words[first : first + SHINGLE_WORDS]) for first in range(len(words) - SHINGLE_WORDS + 1)}


def jaccard_of(left, right):
    """Similarity of two sets; two empty ones have none."""
    return len(left & right) / max(len(left | right), 1)


def greedy(ranked, similar):
    """Walk from best to worst and keep what is not similar to anything kept: the kept ones, in order."""
    kept = []
    for one in ranked:
        if not any(similar(other, one) for other in kept):
            kept.append(one)
    return kept
