"""The manifest that makes a folder of Parquet files a table: written last, it tells what made the rows."""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

MANIFEST_NAME = "_manifest.json"
_IDENTITY = ("kind", "schema_version", "rows", "configuration", "inputs")


def identity(manifest: Mapping[str, Any]) -> str:
    """Identity of a table's rows: what made them, and not how they are cut into files or where they lie."""
    facts = {key: manifest[key] for key in _IDENTITY}
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True).encode())
