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

OWN = [*sorted((ROOT / "ccd").glob("*.py")), *sorted((ROOT / "tools").glob("*.py"))]
LISTINGS = {"iterdir", "glob", "rglob", "listdir", "scandir"}
ANY_ORDER = {"sorted", "min", "max", "any", "all", "set", "len", "sum"}

def called(n): # the last part of a call's name
    return getattr(n.func, "attr", getattr(n.func, "id", ""))

def by_locale(source):
    "Lines that read or write text as the locale says: `open` and its like without an encoding."
    for n in ast.walk(ast.parse(source)):
        if not isinstance(n, ast.Call): continue
        given = {k.arg: ast.unparse(k.value) for k in n.keywords}
        mode = given.get("mode", "".join(ast.unparse(a) for a in n.args[1:2]))
        text = isinstance(n.func, ast.Name) and n.func.id == "open" and "b" not in mode.strip("'\"")
        piped = {"text", "universal_newlines"} & {k for k, v in given.items() if v == "True"}
        if "encoding" not in given and (text or piped or called(n) in ("read_text", "write_text")): yield n.lineno

def by_directory(source):
    "Lines that take a folder's files in the order that the disk gives them."
    tree = ast.parse(source)
    above = {c: p for p in ast.walk(tree) for c in ast.iter_child_nodes(p)}
    def around(n):
        while (n := above.get(n)) and not isinstance(n, ast.stmt): yield n
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and called(n) in LISTINGS and not any(
                isinstance(p, ast.SetComp) or (isinstance(p, ast.Call) and called(p) in ANY_ORDER) for p in around(n)): yield n.lineno

@pytest.mark.parametrize("found", [by_locale, by_directory])
def test_neither_locale_nor_disk_changes_a_result(found):
    assert {p.name: lines for p in OWN if (lines := list(found(p.read_text(encoding="utf-8"))))} == {}

@pytest.mark.parametrize("found, line, seen", [
    (by_locale, "p.read_text()", 1), (by_locale, "p.write_text(x, encoding='utf-8')", 0), (by_locale, "open(p, 'a')", 1),
    (by_locale, "open(p, 'rb')", 0), (by_locale, "Image.open(p)", 0), (by_locale, "subprocess.run(c, text=True)", 1),
    (by_locale, "dict(title='a', text='b')", 0), (by_directory, "for f in p.glob('*'): use(f)", 1),
    (by_directory, "x = {f: 1 for f in os.listdir(p)}", 1), (by_directory, "x = sorted(f for f in p.rglob('*') if f.is_file())", 0),
    (by_directory, "any(p.iterdir())", 0), (by_directory, "x = {f.name for f in p.iterdir()}", 0)])
def test_a_line_that_follows_locale_or_disk_is_seen(found, line, seen): assert len(list(found(line))) == seen
