"""The house: what stands on what, how large its rooms are, and what they show to each other. The
limits stand here and nowhere else.

The reading order is the sidebar of the site; a folder below ccd/ is a room, and what begins with an
underscore stays in its room."""
import ast, json, re, statistics
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES_OF_A_FOLDER = 10
LINES_OF_A_MODULE, MEDIAN_MODULE = 500, 300 # without blank lines and the markers of cells
PUBLIC_NAMES = 490
MEDIAN_CELL, LARGE_CELL, LARGEST_CELL = 6, 20, 45 # lines of code; nine in ten are below the second

PAGES = [ROOT / f"nbs/library/{p}"
         for p in re.findall(r"- library/(\S*\d\d_\w+\.ipynb)",
                             (ROOT / "_quarto.yml").read_text(encoding="utf-8"))]

def module(page):
    """The module that a page is the source of, as its place says: data/01_images.ipynb is
    data.images."""
    return re.sub(r"\d\d_", "",
                  str(page.relative_to(ROOT / "nbs/library").with_suffix(""))).replace("/", ".")

MODULES = list(map(module, PAGES))

def source(module):
    return (ROOT / "ccd" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")

def room(module): return module.split(".")[0] if "." in module else ""

def cells(page):
    return ["".join(c["source"])
            for c in json.loads(page.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "code"]

def imported(source, module):
    """(module, name or None) of all that a module of `ccd` imports from others of it, wherever in
    its source."""
    own = ["ccd", *module.split(".")]
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import):
            yield from ((a.name[4:], None) for a in n.names if a.name.startswith("ccd."))
        if isinstance(n, ast.ImportFrom):
            base = ".".join([*(own[:-n.level] if n.level else []), *filter(None, [n.module])])
            if (base + ".").startswith("ccd."):
                for a in n.names:
                    inner = f"{base}.{a.name}"[4:]
                    yield (inner, None) if inner in MODULES or base == "ccd" else (base[4:], a.name)

def climbs(sources):
    "Imports of later modules, of sources in reading order."
    order = list(sources)
    return [(m, k) for i, m in enumerate(order)
            for k in sorted({k for k, _ in imported(sources[m], m)}) if k not in order[:i + 1]]

def public(source):
    "Names that a module defines without an underscore in front."
    for n in ast.parse(source).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): names = [n.name]
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            names = [x.id for t in getattr(n, "targets", [getattr(n, "target", None)])
                     for x in ast.walk(t)
                     if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]
        else: continue
        yield from (x for x in names if not x.startswith("_"))

def lines(source):
    return sum(bool(l.strip()) and not l.startswith("# %%") for l in source.splitlines())

# --- what stands on what

def test_no_import_climbs():
    sources = {m: source(m) for m in MODULES}
    assert len(sources) > 25 and sum(len(set(imported(s, m))) for m, s in sources.items()) > 300
    assert climbs(sources) == []

@pytest.mark.parametrize("line",
                         ["from ccd.b import x", "from .b import x", "from . import b",
                          "from ccd import b", "import ccd.b",
                                  "def f():\n    from ccd.b import x", "import ccd.b as other",
                          "from ccd.gone import x"])
def test_a_climb_is_seen(line):
    assert (climbs({"a": line, "b": "from ccd.a import y"})
            == [("a", "gone" if "gone" in line else "b")])

@pytest.mark.parametrize("line", ["from ..b import x", "from ccd.b import x", "from .c import x"])
def test_a_climb_out_of_a_folder_is_seen(line):
    assert climbs({"r.a": line, "b": "", "r.c": ""}) == [("r.a", "r.c" if ".c" in line else "b")]

def test_a_room_is_whole_in_the_reading_order():
    rooms = [room(m) for m in MODULES if m not in ("commands", "cli")]
    assert ([r for k, r in enumerate(rooms) if not k or rooms[k - 1] != r]
            == list(dict.fromkeys(rooms)) and MODULES[-1] == "cli")

def test_what_begins_with_an_underscore_stays_in_its_room():
    assert [(m, k, n) for m in MODULES
            for k, n in imported(source(m), m) if n and n.startswith("_")
            and room(k) != room(m)] == []

# --- how large, and what is shown

def test_folders_are_walked_in_one_look():
    for folder in {p.parent for p in (ROOT / "ccd").rglob("*.py")}:
        assert len([p
                    for p in folder.glob("*.py")
                    if not p.stem.startswith("_")]) <= MODULES_OF_A_FOLDER, folder

def test_modules_are_small():
    size = {m: lines(source(m)) for m in MODULES}
    assert {m: n for m, n in size.items() if n > LINES_OF_A_MODULE} == {}
    assert statistics.median(size.values()) < MEDIAN_MODULE

def test_the_public_surface_is_small_and_says_one_thing_by_one_name():
    names = [n for m in MODULES for n in public(source(m))]
    assert len(names) < PUBLIC_NAMES
    assert sorted({n for n in names if names.count(n) > 1}) == []

def test_cells_are_small():
    size = sorted(n for p in PAGES
                  for c in cells(p)
                  if (n := sum(bool(l.strip()) and not l.startswith("#|") for l in c.splitlines())))
    assert (statistics.median(size) <= MEDIAN_CELL and size[len(size) * 9 // 10] <= LARGE_CELL
            and size[-1] <= LARGEST_CELL)

def test_names_say_what_they_hold():
    """Names of one letter are for tensors and indices: at most 8 % of the uses of names, as in
    lightly; in open_clip it is 10 %."""
    names = [node.arg if isinstance(node, ast.arg) else node.id
             for path in (ROOT / "ccd").rglob("*.py") if not path.stem.startswith("_")
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, (ast.Name, ast.arg))]
    assert sum(len(name) == 1 and name != "_" for name in names) <= 0.08 * len(names)

def test_no_comprehension_is_run_for_its_effect():
    assert not [f"{path.name}:{node.lineno}" for path in (ROOT / "ccd").rglob("*.py")
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Expr)
                and isinstance(node.value, (ast.ListComp, ast.SetComp, ast.GeneratorExp))]

# --- pages and tests are where the modules are

def test_every_module_has_a_page_and_a_row():
    assert [next(m[1] for c in cells(p) if (m := re.search(r"^#\| *default_exp +(\S+)", c, re.M)))
            for p in PAGES] == MODULES
    files = {str(p.relative_to(ROOT / "ccd").with_suffix("")).replace("/", ".")
             for p in (ROOT / "ccd").rglob("*.py") if not p.stem.startswith("_")}
    assert sorted(MODULES) == sorted(files)
    prose = "".join("".join(c["source"]) + "\n"
                    for c
                    in json.loads(
                        (ROOT / "nbs/library/index.ipynb").read_text(encoding="utf-8"))["cells"])
    rows = re.findall(r"\| \[[^\]]+\]\((\S+\.ipynb)\) \| `ccd\.([\w.]+)` \|", prose)
    assert rows == [(str(p.relative_to(ROOT / "nbs/library")), m) for p, m in zip(PAGES, MODULES)]

def test_tests_lie_in_the_rooms_of_what_they_test():
    folders = {str(p.parent.relative_to(ROOT / "tests"))
               for p in (ROOT / "tests").rglob("test_*.py")}
    assert (folders <= {"."}
            | {str(p.parent.relative_to(ROOT / "ccd")) for p in (ROOT / "ccd").rglob("*.py")})
    assert {room(m) for m in MODULES} - {""} <= folders

# --- what no locale and no disk changes

OWN = [*sorted((ROOT / "ccd").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py"))]
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
        if "encoding" not in given and (text or piped or called(n) in ("read_text", "write_text")):
            yield n.lineno

def by_directory(source):
    "Lines that take a folder's files in the order that the disk gives them."
    tree = ast.parse(source)
    above = {c: p for p in ast.walk(tree) for c in ast.iter_child_nodes(p)}
    def around(n):
        while (n := above.get(n)) and not isinstance(n, ast.stmt): yield n
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and called(n) in LISTINGS and not any(
                isinstance(p, ast.SetComp) or (isinstance(p, ast.Call) and called(p) in ANY_ORDER)
                for p in around(n)): yield n.lineno

@pytest.mark.parametrize("found", [by_locale, by_directory])
def test_neither_locale_nor_disk_changes_a_result(found):
    assert {str(p.relative_to(ROOT)): lines
            for p in OWN if (lines := list(found(p.read_text(encoding="utf-8"))))} == {}

@pytest.mark.parametrize("found, line, seen", [
    (by_locale, "p.read_text()", 1), (by_locale, "p.write_text(x, encoding='utf-8')", 0),
    (by_locale, "open(p, 'a')", 1),
    (by_locale, "open(p, 'rb')", 0), (by_locale, "Image.open(p)", 0),
    (by_locale, "subprocess.run(c, text=True)", 1),
    (by_locale, "dict(title='a', text='b')", 0), (by_directory, "for f in p.glob('*'): use(f)", 1),
    (by_directory, "x = {f: 1 for f in os.listdir(p)}", 1),
    (by_directory, "x = sorted(f for f in p.rglob('*') if f.is_file())", 0),
    (by_directory, "any(p.iterdir())", 0), (by_directory, "x = {f.name for f in p.iterdir()}", 0)])
def test_a_line_that_follows_locale_or_disk_is_seen(found, line, seen):
    assert len(list(found(line))) == seen
