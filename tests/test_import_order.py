"""Files come after what they import, in four languages; the order is a function of paths and imports alone."""

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.sharding import import_order
from spark_jobs.sharding.import_order import CODE, CONFIGURATION, DOCUMENTATION, imports_of, kind_of

PYTHON = {
    "src/pkg/app.py": "import os, json\nimport pkg.core.base as base\nfrom .core import tools\n"
    "from pkg import (\n    config,\n)",
    "src/pkg/config.py": "X = 1",
    "src/pkg/__init__.py": "",
    "src/pkg/core/__init__.py": "",
    "src/pkg/core/base.py": "from ..config import X",
    "src/pkg/core/tools.py": "from . import base; from .base import thing",
    "tests/test_app.py": "    from pkg.app import main",
}
JAVASCRIPT = {
    "web/a.ts": "import { b } from './b';\nexport * from \"../lib\";\nimport React from 'react';",
    "web/b.tsx": "const c = require('./deep/c.js')",
    "web/deep/c.ts": "",
    "lib/index.js": "import './side';",
    "lib/side.mjs": "export default 1",
}
JAVA = {
    "src/main/java/org/x/App.java": "package org.x;\nimport org.x.util.Tool;\nimport static org.x.util.Names.NAME;\n",
    "src/main/java/org/x/util/Tool.java": "import java.util.List;\nimport org.x.model.*;",
    "src/main/java/org/x/util/Names.java": "",
    "src/main/java/org/x/model/Model.java": "",
    "src/test/java/org/x/AppTest.java": "import org.x.App;",
}
GO = {
    "cmd/main.go": 'package main\nimport (\n\t"fmt"\n\tu "github.com/me/repo/internal/util"\n)\n',
    "internal/util/a.go": 'import "github.com/me/repo/internal/base"',
    "internal/util/b.go": "",
    "internal/base/base.go": "",
    "fmt/fmt.go": "",
}
NEEDED = [
    (PYTHON, "src/pkg/app.py", ["src/pkg/core/base.py", "src/pkg/core/tools.py", "src/pkg/config.py"]),
    (PYTHON, "src/pkg/core/base.py", ["src/pkg/config.py"]),
    (PYTHON, "tests/test_app.py", []),
    (JAVASCRIPT, "web/a.ts", ["web/b.tsx", "lib/index.js"]),
    (JAVASCRIPT, "web/b.tsx", ["web/deep/c.ts"]),
    (JAVASCRIPT, "lib/index.js", ["lib/side.mjs"]),
    (
        JAVA,
        "src/main/java/org/x/App.java",
        ["src/main/java/org/x/util/Tool.java", "src/main/java/org/x/util/Names.java"],
    ),
    (JAVA, "src/main/java/org/x/util/Tool.java", ["src/main/java/org/x/model/Model.java"]),
    (JAVA, "src/test/java/org/x/AppTest.java", ["src/main/java/org/x/App.java"]),
    (GO, "cmd/main.go", ["internal/util/a.go", "internal/util/b.go", "fmt/fmt.go"]),
    (GO, "internal/util/a.go", ["internal/base/base.go"]),
]


def ordered(files):
    paths = list(files)
    imports = [imports_of(path, pa.scalar(files[path], pa.large_string())) for path in paths]
    return [paths[number] for number in import_order.import_order(paths, imports)]


@pytest.mark.parametrize(("files", "path", "needed"), NEEDED)
def test_a_file_comes_after_what_it_imports(files, path, needed):
    for seed in range(5):
        shuffled = dict(random.Random(seed).sample(list(files.items()), len(files)))
        order = ordered(shuffled)
        assert sorted(order) == sorted(files)
        for other in needed:
            assert order.index(other) < order.index(path)
    assert order == ordered(files)


def test_documentation_and_configuration_come_first():
    kinds = {
        "README.md": DOCUMENTATION,
        "docs/guide.rst": DOCUMENTATION,
        "LICENSE": DOCUMENTATION,
        "a/package.json": CONFIGURATION,
        "setup.py": CONFIGURATION,
        "Makefile": CONFIGURATION,
        ".eslintrc": CONFIGURATION,
        "readme_maker.py": CODE,
        "a/b.go": CODE,
        "licenses/check.py": CODE,
    }
    assert {path: kind_of(path) for path in kinds} == kinds
    order = ordered(dict.fromkeys(sorted(kinds, reverse=True), ""))
    assert [kind_of(path) for path in order] == sorted(kinds.values())


@st.composite
def graphs(draw):
    """Python modules of one folder, and whom each imports."""
    count = draw(st.integers(1, 12))
    return [draw(st.lists(st.integers(0, count - 1), max_size=4)) for _ in range(count)]


@given(graphs(), st.randoms())
def test_circles_end_and_what_is_in_none_is_in_order(graph, draw):
    files = {f"m{number}.py": "".join(f"import m{other}\n" for other in needs) for number, needs in enumerate(graph)}
    names = list(files)
    draw.shuffle(names)
    order = ordered({name: files[name] for name in names})
    assert sorted(order) == sorted(files)
    assert order == ordered(files)
    reach = [{other for other in needs if other != number} for number, needs in enumerate(graph)]
    for middle in range(len(graph)):
        for number in range(len(graph)):
            if middle in reach[number]:
                reach[number] |= reach[middle]
    for number, needs in enumerate(graph):
        for other in needs:
            if number not in reach[other] and number != other:
                assert order.index(f"m{other}.py") < order.index(f"m{number}.py")


def test_a_long_chain_and_a_text_full_of_imports_end():
    count = 5000
    chain = {f"m{number:05d}.py": f"import m{number + 1:05d}" for number in range(count)}
    assert ordered(chain) == sorted(chain, reverse=True)
    text = pa.scalar("import a\n" * 100_000 + "from b import (" * 10_000, pa.large_string())
    assert imports_of("x.py", text) == ["a"]
    many = pa.scalar("".join(f"import a{number}\n" for number in range(20_000)), pa.large_string())
    assert len(imports_of("x.py", many)) == import_order.MAX_IMPORTS
    assert imports_of("x.c", many) == imports_of(None, many) == imports_of("x.py", pa.scalar(None, pa.string())) == []
