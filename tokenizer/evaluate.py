"""sample + tokenizer -> how good the tokenizer is, on held-out files, beside others: a table, a page, and advice."""

from tokenizer.command_line import run


def main(
    *,
    tokenizer: str,
    sample: str,
    output: str,
    others: list[str] | None = None,
    packages: list[str] | None = None,
    sizes: list[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Measure a tokenizer on the held-out files of a sample and compare it with others.

    Writes `evaluation.json` and `evaluation.html`, and ends with advice in one line.

    Args:
        tokenizer: folder as tokenizer/train.py writes it.
        sample: table of a sample, whose held-out files training did not see.
        output: folder of the evaluation; a report shows it if it is WORKSPACE/evaluation.
        others: folders of other tokenizers to compare with.
        packages: installed Python packages, whose tokenizers are compared too.
        sizes: sizes of vocabulary to try, up to the tokenizer's own; default is that and its halves.
        overwrite: replace what lies there.
    """
    import json
    from pathlib import Path

    from tokenizer import candidates, evaluation, evaluation_page, evaluation_table
    from tokenizer.whole_folder import require_apart, whole_folder

    found = [candidates.of_folder(tokenizer)]
    found += [candidates.of_folder(folder) for folder in others or []]
    found += [one for package in packages or [] for one in candidates.of_package(package)]
    wanted = sorted(set(sizes or candidates.halved(found[0].vocab_size)))
    configuration = evaluation.configuration(tokenizer, sample, found, wanted)
    folder = Path(output)
    require_apart(output, [tokenizer, sample, *(others or [])])
    if evaluation.done(folder, configuration, overwrite):
        return
    evaluated = {"configuration": configuration, **evaluation.evaluated(tokenizer, sample, found, wanted)}
    record = json.dumps(evaluated, indent=1, ensure_ascii=False) + "\n"
    with whole_folder(folder, overwrite=overwrite, marks=[evaluation.RECORD_FILE]) as place:
        (place / evaluation.PAGE_FILE).write_text(evaluation_page.page(evaluated), encoding="utf-8")
        (place / evaluation.RECORD_FILE).write_text(record, encoding="utf-8")
    print(evaluation_table.table(evaluated))
    print(f"evaluate: {folder / evaluation.PAGE_FILE}\n{evaluated['advice']}")


if __name__ == "__main__":
    run(main)
