"A module needs only modules that come before it in reading order; every module has a page, and the page a row in the table."
import ast, json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "nbs/library").glob("[0-9][0-9]_*.ipynb"))

def exported(page):
    "The module that a page is the source of."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return next(m[1] for c in cells if (m := re.search(r"^#\| *default_exp +(\w+)", "".join(c["source"]), re.M)))

def needed(source):
    "The modules of `ccd` that a source imports, wherever in it."
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = ("ccd." if n.level else "") + (n.module or "")
            names = [f"{base.rstrip('.')}.{a.name}" if base.rstrip(".") == "ccd" else base for a in n.names]
        else: continue
        yield from (m[1] for x in names if (m := re.match(r"ccd\.(\w+)", x)))

def climbs(sources):
    "Imports of later modules, of sources in reading order."
    order = list(sources)
    return [(m, k) for i, m in enumerate(order) for k in sorted(set(needed(sources[m]))) if k not in order[:i + 1]]

def test_no_import_climbs():
    sources = {m: (ROOT / f"ccd/{m}.py").read_text(encoding="utf-8") for m in map(exported, PAGES)}
    assert len(sources) > 25 and sum(len(set(needed(s))) for s in sources.values()) > 100
    assert climbs(sources) == []

@pytest.mark.parametrize("line", ["from ccd.b import x", "from .b import x", "from . import b", "from ccd import b", "import ccd.b",
                                  "def f():\n    from ccd.b import x", "import ccd.b as other", "from ccd.gone import x"])
def test_a_climb_is_seen(line):
    assert climbs({"a": line, "b": "from ccd.a import y"}) == [("a", "gone" if "gone" in line else "b")]

def test_every_module_has_a_page_and_a_row():
    modules = list(map(exported, PAGES))
    assert sorted(modules) == sorted(p.stem for p in (ROOT / "ccd").glob("*.py") if not p.stem.startswith("_"))
    rows = re.findall(r"\| \[[^\]]+\]\((\S+\.ipynb)\) \| `ccd\.(\w+)` \|", "".join(
        "".join(c["source"]) + "\n" for c in json.loads((ROOT / "nbs/library/index.ipynb").read_text(encoding="utf-8"))["cells"]))
    assert rows == [(p.name, m) for p, m in zip(PAGES, modules)]
