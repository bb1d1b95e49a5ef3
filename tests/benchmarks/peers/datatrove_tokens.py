"""datatrove: the tokenization step of its example, tokenize_from_hf_to_s3.py, on this machine with two processes.

Its example goes on to merge and shuffle what this step wrote; that is not timed.
"""

import sys
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from documents import write_kept

PROCESSES = 2


def main(folder: str, tokens: str) -> None:
    """Write the number of tokens as the one line of a file. The tokenizer lies beside the corpora."""
    tokenizer = Path(folder).parents[1] / "tokenizer" / "tokenizer.json"
    reader = ParquetReader(folder, text_key="content")
    writer = DocumentTokenizer("tokenized", tokenizer_name_or_path=str(tokenizer), eos_token="<|endoftext|>")
    files = len(list(Path(folder).glob("*.parquet")))
    executor = LocalPipelineExecutor(pipeline=[reader, writer], tasks=files, workers=PROCESSES, logging_dir="logs")
    executor.run()
    sizes = [np.fromfile(file, np.uint64)[-1] for file in sorted(Path("tokenized").glob("*.index"))]
    write_kept(tokens, [int(sum(sizes))])


if __name__ == "__main__":
    main(*sys.argv[1:3])
