"""A long step passes its items on and says now and then how far it is."""

from tokenizer import progress


def test_progress_tells_what_is_done_and_left(monkeypatch, capsys):
    clock = iter([0.0, *(float(second) for second in range(0, 30, 3))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.told("abcdefghij", "verify: shards", 10)) == list("abcdefghij")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "verify: shards: 3 of 10, about 14 s left",
        "verify: shards: 5 of 10, about 12 s left",
        "verify: shards: 7 of 10, about 8 s left",
        "verify: shards: 9 of 10, about 3 s left",
    ]


def test_bytes_are_told_with_their_rate_at_the_end_of_a_long_step(monkeypatch, capsys):
    for seconds, lines in [
        ([0.0, 4.0, 4.5], []),
        (
            [0.0, 10.0, 20.0],
            ["copying: 3.0 GB of 8.4 GB, about 18 s left", "copying: 3.0 GB in 20 s, 0.15 GB a second"],
        ),
    ]:
        clock = iter(seconds)
        monkeypatch.setattr(progress.time, "monotonic", clock.__next__)
        copying = progress.Progress("copying", 8_400_000_000, gigabytes=True)
        copying.add(3_000_000_000)
        copying.end()
        assert capsys.readouterr().err.splitlines() == lines
