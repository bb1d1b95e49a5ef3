"""The order of a repository's files: documentation and configuration first, then modules after what they import.

Imports are read from the text by one regular expression a language (Python, JavaScript and TypeScript, Java, Go), not
by a parser: a line in a string that looks like an import costs a place in an order, nothing else. They are resolved
against the repository's own paths; what is not found there is somebody else's. Circles are cut where the walk meets
them, by path, so that the order depends on the paths and imports alone.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from posixpath import dirname, normpath

import pyarrow as pa
import xxhash

# Text that is searched for imports, and imports of one file that are followed, at most.
HEAD_BYTES, MAX_IMPORTS = 1 << 18, 1000

DOCUMENTATION, CONFIGURATION, CODE = range(3)

_DOCUMENTATION = re.compile(
    r"(?:^|/)(?:readme|licen[cs]e|copying|notice|authors|contributors|contributing|changelog|changes|history|security"
    r"|code_of_conduct)(?:\.\w+)?$|\.(?:md|mdx|rst|txt|adoc|asciidoc|tex|org)$",
    re.IGNORECASE,
)
_CONFIGURATION = re.compile(
    r"\.(?:json|json5|jsonc|ya?ml|toml|ini|cfg|conf|config|properties|xml|gradle|lock|env|mod|sum|editorconfig)$"
    r"|(?:^|/)(?:makefile|dockerfile|jenkinsfile|\.[\w.-]+rc|\.git\w+|\.env[\w.]*|setup\.py|go\.(?:mod|sum))$",
    re.IGNORECASE,
)
_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]*(\([^)]{0,4000}\)|[^\n#;]*)|import[ \t]+([^\n#;]+))",
    re.MULTILINE,
)
_JAVASCRIPT = re.compile(
    r"(?:\bfrom|\bimport|\brequire[ \t]*\(|\bimport[ \t]*\()[ \t]*[\"'](\.{1,2}(?:/[^\"'\n]{0,500})?)[\"']"
)
_JAVA = re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]+(?:\.\*)?)[ \t]*;", re.MULTILINE)
_GO = re.compile(r"^[ \t]*import[ \t]*(?:\(([^)]*)\)|(?:[\w.]+[ \t]+)?\"([^\"\n]+)\")", re.MULTILINE)
_GO_PATH = re.compile(r"\"([^\"\n]+)\"")
_NAME = re.compile(r"\w+")
_SCRIPT_ENDINGS = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts", ".vue", ".svelte")


def kind_of(path: str) -> int:
    """DOCUMENTATION, CONFIGURATION or CODE, by a file's path."""
    if _DOCUMENTATION.search(path):
        return DOCUMENTATION
    return CONFIGURATION if _CONFIGURATION.search(path) else CODE


def rank_of(path: str | None) -> int:
    """A number that sorts a repository's files by kind and folder: the order where there are too many to look at."""
    return kind_of(path or "") << 62 | xxhash.xxh3_64_intdigest(dirname(path or "").encode()) >> 2


def imports_of(path: str | None, text: pa.Scalar) -> list[str]:
    """What a file imports, as its text has it: dotted modules (leading dots are relative), or paths."""
    language = _LANGUAGES.get((path or "").rpartition(".")[2].lower())
    if language is None or not text.is_valid:
        return []
    head = text.as_buffer()[:HEAD_BYTES].to_pybytes().decode(errors="ignore")
    return list(dict.fromkeys(language[0](head)))[:MAX_IMPORTS]


def import_order(paths: Sequence[str], imports: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the files of one repository in their order.

    Args:
        paths: of the files (n).
        imports: what each of them imports (n), by `imports_of`.
    """
    tree = _Tree(paths)
    by_path = sorted(range(len(paths)), key=lambda number: (kind_of(paths[number]), paths[number], number))
    order: list[int] = []
    seen: set[int] = set()
    for root in by_path:
        if root in seen:
            continue
        seen.add(root)
        walk = [(root, _needed(tree, paths[root], imports[root]))]
        while walk:
            number, needed = walk[-1]
            following = next((other for other in needed if other not in seen), None)
            if following is None:
                order.append(number)
                walk.pop()
            else:
                seen.add(following)
                walk.append((following, _needed(tree, paths[following], imports[following])))
    return sorted(order, key=lambda number: kind_of(paths[number]))


class _Tree:
    """The files of a repository by path, and by folder."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.files = {path: number for number, path in reversed(list(enumerate(paths)))}
        self.folders: dict[str, list[int]] = {}
        for path in sorted(self.files):
            self.folders.setdefault(dirname(path), []).append(self.files[path])


def _needed(tree: _Tree, path: str, imports: Sequence[str]) -> Iterator[int]:
    """The files of the repository that one of them imports, in the order of its imports."""
    language = _LANGUAGES.get(path.rpartition(".")[2].lower())
    if language is not None:
        for name in imports:
            yield from language[1](tree, path, name)


def _python_imports(text: str) -> Iterator[str]:
    for module, names, plain in _PYTHON.findall(text):
        if plain:
            yield from (part.split()[0] for part in plain.split(",") if part.strip())
            continue
        yield module
        for name in names.strip("() \t").split(","):
            if found := _NAME.match(name.strip()):
                yield f"{module}{'' if module.endswith('.') else '.'}{found[0]}"


def _python_files(tree: _Tree, path: str, module: str) -> Iterator[int]:
    folder, name = dirname(path), module.lstrip(".")
    dots = len(module) - len(name)
    for _ in range(dots - 1):
        folder = dirname(folder)
    place = name.replace(".", "/")
    for root in [folder] if dots else _above(folder):
        base = normpath(f"{root}/{place}").lstrip("/")
        for candidate in (f"{base}.py", f"{base}.pyi", f"{base}/__init__.py"):
            if candidate in tree.files:
                yield tree.files[candidate]
                return


def _javascript_imports(text: str) -> Iterator[str]:
    yield from _JAVASCRIPT.findall(text)


def _javascript_files(tree: _Tree, path: str, name: str) -> Iterator[int]:
    base = normpath(f"{dirname(path)}/{name}").lstrip("/")
    stem = base.rpartition(".")[0] if base.endswith((".js", ".mjs", ".cjs", ".jsx")) else base
    candidates = [base, *(f"{stem}{ending}" for ending in _SCRIPT_ENDINGS)]
    candidates += [f"{base}/index{ending}" for ending in _SCRIPT_ENDINGS]
    found = next((candidate for candidate in candidates if candidate in tree.files), None)
    if found is not None:
        yield tree.files[found]


def _java_imports(text: str) -> Iterator[str]:
    yield from _JAVA.findall(text)


def _java_files(tree: _Tree, path: str, name: str) -> Iterator[int]:
    for here in (path, path.replace("/test/", "/main/")):
        for root in _above(dirname(here)):
            parts = name.split(".")
            if parts[-1] == "*":
                folder = normpath(f"{root}/{'/'.join(parts[:-1])}").lstrip("/")
                if folder in tree.folders:
                    yield from tree.folders[folder]
                    return
            for end in (len(parts), len(parts) - 1):  # a static import names a member of a class
                candidate = normpath(f"{root}/{'/'.join(parts[:end])}.java").lstrip("/")
                if candidate in tree.files:
                    yield tree.files[candidate]
                    return


def _go_imports(text: str) -> Iterator[str]:
    for block, single in _GO.findall(text):
        yield from [single] if single else _GO_PATH.findall(block)


def _go_files(tree: _Tree, path: str, name: str) -> Iterator[int]:
    """A package is a folder; its import begins with the name of the module, which may have several parts."""
    parts = name.split("/")
    for first in range(len(parts) if "." in parts[0] else 1):
        folder = "/".join(parts[first:])
        if folder in tree.folders and folder != dirname(path):
            yield from tree.folders[folder]
            return


def _above(folder: str) -> Iterator[str]:
    """A folder and all above it, from the nearest to the root, each followed by its `src`."""
    while True:
        yield folder
        yield f"{folder}/src"
        if not folder:
            return
        folder = dirname(folder)


_Language = tuple[Callable[[str], Iterator[str]], Callable[[_Tree, str, str], Iterator[int]]]
_PYTHON_LANGUAGE: _Language = (_python_imports, _python_files)
_SCRIPT_LANGUAGE: _Language = (_javascript_imports, _javascript_files)
_LANGUAGES: dict[str, _Language] = {
    "py": _PYTHON_LANGUAGE,
    "pyi": _PYTHON_LANGUAGE,
    **dict.fromkeys(("js", "jsx", "mjs", "cjs", "ts", "tsx", "mts", "cts", "vue", "svelte"), _SCRIPT_LANGUAGE),
    "java": (_java_imports, _java_files),
    "go": (_go_imports, _go_files),
}
