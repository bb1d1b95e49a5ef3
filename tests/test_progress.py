"""A long step passes its items on and says now and then how far it is."""

from tokenizer import progress


def test_progress_tells_what_is_done_and_left(monkeypatch, capsys):
    clock = iter([0.0, *(float(second) for second in range(0, 30, 3))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.told("abcdefghij", "verify: shards", 10)) == list("abcdefghij")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "verify: shards: 2 of 10, about 24 s left",
        "verify: shards: 4 of 10, about 18 s left",
        "verify: shards: 6 of 10, about 12 s left",
        "verify: shards: 8 of 10, about 6 s left",
    ]
