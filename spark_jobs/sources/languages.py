"""The language of a file by its name, after GitHub's linguist (languages.json says from which revision).

Only names are asked, never content: a header `.h` is C, `.m` is Objective-C. That is one dictionary look-up a file,
so files of no text language need not be opened.
"""

import difflib
import functools
import importlib.resources
import json
from collections.abc import Iterable


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Language by extension, by whole file name, and languages by their lower-case names."""
    data = importlib.resources.files(__package__).joinpath("languages.json").read_text("utf-8")
    languages = json.loads(data)["languages"]
    extensions = {ending: name for name, known in languages.items() for ending in known["extensions"]}
    names = {whole: name for name, known in languages.items() for whole in known["names"]}
    return extensions, names, {name.lower(): name for name in languages}


def of_name(path: str) -> str | None:
    """The language of a file by its path, None if its name is of no known text language."""
    extensions, names, _ = _tables()
    name = path[path.rfind("/") + 1 :]
    if name in names:
        return names[name]
    name = name.lower()
    dot = name.find(".", 1)
    while dot >= 0:
        if language := extensions.get(name[dot:]):
            return language
        dot = name.find(".", dot + 1)
    return None


def canonical(name: str) -> str:
    """The usual spelling of a language that data names in its own way (`python`); other names stay as they are."""
    return _tables()[2].get(name.strip().lower(), name)


def require_known(names: Iterable[str]) -> list[str]:
    """The names in their usual spelling, sorted; ValueError for one that no file name would ever have."""
    known = _tables()[2]
    for name in names:
        if name.strip().lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=3)
            hint = f"; near are {', '.join(known[other] for other in near)}" if near else ""
            raise ValueError(f"no language is called {name!r}{hint}")
    return sorted({canonical(name) for name in names})
