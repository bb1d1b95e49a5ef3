"""documents + ledger + tokenizer -> token shards, split into train, validation and test by repository."""

from typing import Literal

from tokenizer.command_line import run


def main(
    *,
    documents: str,
    ledger: str,
    tokenizer: str,
    output: str,
    validation_share: float = 0.02,
    test_share: float = 0.01,
    shard_tokens: int = 64 << 20,
    order: Literal["hash", "repository"] = "hash",
    redact: bool = True,
    seed: int = 0,
    repair: bool = False,
    overwrite: bool = False,
) -> None:
    """Tokenize the kept documents into Arrow IPC shards. `index.json` is written last.

    A run that was killed goes on when the same command is given again, and ends with the same bytes.

    Args:
        documents: table of documents.
        ledger: table of states; the kept files become shards.
        tokenizer: folder with a `tokenizer.json`.
        output: folder of the shards, on a file system that all workers share.
        validation_share: share of the kept bytes to hold out, in whole repositories, in [0, 0.5].
        test_share: the same for a third split, of other repositories.
        shard_tokens: tokens that a shard holds, about.
        order: of documents: a keyed hash of their ids shuffles them, or whole repositories, files after what they
            import, with `<repo_name>` and `<file_sep>`; a repository lies in one shard.
        redact: replace e-mail addresses, public IP addresses and keys.
        seed: of the order of documents and of the choice of held-out repositories.
        repair: verify the finished shards of the same inputs and settings, and write the broken ones again.
        overwrite: replace what lies there.
    """
    from spark_jobs import tables
    from spark_jobs.session import start_session
    from spark_jobs.sharding import folder, steps

    settings = steps.Settings(validation_share, test_share, shard_tokens, order, redact, seed)
    tables.require_made_from(ledger, documents=documents)
    tables.require_apart(output, {"documents": documents, "ledger": ledger})
    inputs = steps.inputs_of(documents, ledger, tokenizer, settings)
    if repair:
        settings = steps.settings_written(inputs, output)
        with folder.mending(output) as place, start_session("write_shards") as spark:
            renewed = steps.repair(spark, inputs, settings, place)
        print(f"write_shards: {len(renewed)} shard(s) written again {' '.join(renewed[:20])}".rstrip())
        return
    tables.require_apart(output, {"tokenizer": tokenizer})
    configuration = inputs.configuration(settings)
    if folder.done(output, configuration, overwrite):
        return
    with folder.making(output, configuration, overwrite) as place, start_session("write_shards") as spark:
        index = steps.write(spark, inputs, settings, place)
    print(steps.summary(index, output))


if __name__ == "__main__":
    run(main)
