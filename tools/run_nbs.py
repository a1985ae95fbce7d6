"""Run notebooks top to bottom and store their outputs; with --check, compare with the stored ones
instead.

Leading directives of a cell: `#| slow` is left out by `--skip slow` and keeps its outputs; `#|
timing` runs, but its output may differ, as times do; `#| eval: false` never runs. One execution
says both whether a notebook passes, as `nbdev_test` does, and what it shows."""
import argparse, base64, io, json, os, re, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ready import READY, Job, end

# two machines agree when numbers and image sizes do, this far
RTOL, ATOL, PIXELS = 0.02, 1e-3, 0.02
NUM = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)(?:[eE][-+]?\d+)?")
DATA_URI = re.compile(r"data:image/[\w+.-]+;base64,([\w+/=\s]+)")
TEXT = "text/plain", "text/html", "text/markdown", "text/latex", "application/json"

def join(s):
    return s if isinstance(s, str) else "".join(s) if isinstance(s, list) else json.dumps(s)

def directives(cell): return set(re.findall(r"^#\|\s*([\w-]+)", join(cell["source"]), re.M))

# --- running, in a process of its own

def run(path, skip):
    "The notebook at `path` with new outputs, run by nbdev's own test of a notebook."
    from execnb.nbio import read_nb
    from nbdev import test
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    nb, ran = read_nb(path), []
    class Shell(test.CaptureShell):
        def run_all(self, made, preproc, **kw):
            def passed_over(cell):
                if preproc(cell): return True
                # execnb keeps old outputs of a silent cell
                cell.outputs = []
            ran.extend(made.cells)
            super().run_all(made, preproc=passed_over, **kw)
    test.CaptureShell = Shell
    good, _ = test.test_nb(path, skip_flags=skip, basepath=get_config().config_path)
    if not good: sys.exit(1)
    for cell, done in zip(nb.cells, ran):
        if cell.cell_type == "code": cell.outputs = done.outputs
        store(cell)
    if any(broken(c) for c in nb.cells): sys.exit(1)
    clean_nb(nb, clear_all=False)
    return nb

def broken(cell):
    "Was an output not drawn? IPython then prints the error and goes on."
    return cell.cell_type == "code" and any("Traceback (most recent call last)"
                                            in re.sub(r"\x1b\[[\d;]*m", "", join(o.get("text", "")))
                                            for o in cell.outputs)

def store(cell):
    """Drop what names this machine: warnings, and the source lines in show_doc, which nbdev draws
    again."""
    if cell.cell_type != "code": return
    for o in cell.outputs:
        if o.get("name") == "stderr": print(join(o["text"]), file=sys.stderr)
    shown = cell.source.lstrip().startswith("show_doc(")
    cell.outputs = [] if shown else [o for o in cell.outputs if o.get("name") != "stderr"]

def child(path, out, skip):
    from execnb.nbio import nb2str
    Path(out).write_text(nb2str(run(path, skip)), encoding="utf-8")

def execute(path, skip, timeout):
    "(text of the executed notebook, or None; what it said; seconds)"
    with tempfile.TemporaryDirectory() as tmp:
        out, said, t0, late = Path(tmp)/"out.ipynb", Path(tmp)/"said", time.time(), ""
        said.touch()
        p = Job(child, path, out, skip, said=said)
        try: p.wait(timeout)
        except subprocess.TimeoutExpired:
            late = (f"\nstopped after {timeout:.0f} s: raise --timeout, or mark its long cells #| "
                    "slow")
        finally: end(p)
        new = out.read_text(encoding="utf-8") if out.exists() else None
        return new, said.read_text(encoding="utf-8", errors="replace") + late, time.time()-t0

def prepare(workers):
    "What all notebooks find: variables, and imports that each need not wait for."
    os.environ.update(MPLBACKEND="agg", PYTHONHASHSEED="0", PYTHONUTF8="1")
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1)//workers)))
    READY.set_forkserver_preload(["nbdev.test", "nbdev.clean", "nbdev.showdoc", "matplotlib.pyplot",
                                  "ccd.study.command", "ccd.training.loop",
                                  "ccd.comparison.attribution",
                                   "torch._dynamo", "timm", "umap", "faiss"])

# --- comparing

def pixels(data):
    "Width and height of a base64 image."
    from PIL import Image
    return Image.open(io.BytesIO(base64.b64decode(data))).size

def plain(s):
    "Text without what depends on the width of a number, or on chance."
    s = DATA_URI.sub(lambda m: "image %d x %d" % pixels(m[1]), s)
    s = re.sub(r"\bT_[0-9a-f]{5}", "T_", s)                           # ids of pandas' Styler
    s = re.sub(r"(?<=[-─━=]{2})[-─━=]+", "", s)
    return re.sub(r"[ \t]+", " ", s)

def number(s): return float(s.replace(",", ""))

def near(a, b, rtol=RTOL, atol=ATOL): return abs(a-b) <= max(atol, rtol*max(abs(a), abs(b)))

def same_text(a, b):
    a, b = plain(a), plain(b)
    if NUM.sub("#", a) != NUM.sub("#", b): return False
    return all(near(number(x), number(y)) for x, y in zip(NUM.findall(a), NUM.findall(b)))

def same_image(a, b): return all(near(x, y, PIXELS, 1) for x, y in zip(pixels(a), pixels(b)))

def flat(cell):
    "Outputs as (kind, content), streams merged."
    out = []
    for o in cell.get("outputs", []):
        if o["output_type"] == "stream":
            if out and out[-1][0] == "stream": out[-1] = "stream", out[-1][1] + join(o["text"])
            else: out.append(("stream", join(o["text"])))
        else: out += sorted((k, join(v)) for k, v in o.get("data", {}).items())
    return out

def same(kind, a, b):
    if kind in TEXT or kind == "stream": return same_text(a, b)
    if kind in ("image/png", "image/jpeg"): return same_image(a, b)
    # scripts and drawings: that there is one
    return True

def show(kind, a, b):
    "The first line that differs, stored and new."
    if kind.startswith("image"): return [f"- {kind} {pixels(a)}", f"+ {kind} {pixels(b)}"]
    x, y = a.splitlines() or [""], b.splitlines() or [""]
    n = max(len(x), len(y)); x += ["(nothing)"]*(n-len(x)); y += ["(nothing)"]*(n-len(y))
    i = next((i for i in range(n) if not same_text(x[i], y[i])), 0)
    at = max(0, next((j for j, (p, q) in enumerate(zip(x[i], y[i])) if p != q), 0) - 40)
    return [f"- {x[i][at:at+160]}", f"+ {y[i][at:at+160]}"]

def difference(old, new, skip):
    "Lines that show the first difference between two texts of a notebook, or nothing."
    for n, (a, b) in enumerate(zip(json.loads(old)["cells"], json.loads(new)["cells"])):
        if a["cell_type"] != "code" or directives(a) & {"timing", *skip}: continue
        head = f"cell {n}: {(join(a['source']).strip().splitlines() or [''])[0][:80]}"
        x, y = flat(a), flat(b)
        if [k for k, _ in x] != [k for k, _ in y]:
            return [head, f"- {[k for k, _ in x]}", f"+ {[k for k, _ in y]}"]
        for (k, p), (_, q) in zip(x, y):
            if not same(k, p, q): return [head, *show(k, p, q)]

# --- the command

def notebooks(names):
    from nbdev.config import get_config
    root = get_config().nbs_path
    found = [Path(n).resolve() for n in names] or sorted(root.rglob("*.ipynb"))
    return [p for p in found if names or not re.search(r"(^|/)[._]", str(p.relative_to(root)))]

def one(path, a):
    new, said, seconds = execute(path, a.skip, a.timeout)
    lines = said.strip().splitlines()[-40:]
    if new is None: word = "FAIL"
    elif a.check:
        old = path.read_text(encoding="utf-8")
        diff = difference(old, new, a.skip) or []
        word, lines = ("DIFF", diff) if diff else ("ok", [])
    else: word = "ok"; path.write_text(new, encoding="utf-8")
    print("\n    ".join([f"{word:4} {os.path.relpath(path)}  {seconds:.0f} s", *lines]), flush=True)
    return word

LONG = ("07_segmentation", "datacomp", "07_perturbations", "language_or_data", "03_command",
        "07_answering", "06_attribution", "02_scenes",
        "scaling") # tens of seconds each

def longest_first(paths):
    """`paths` in an order in which no worker waits long for another: the longest, the library, then
    pages that read results."""
    return sorted(paths,
                  key=lambda p: (LONG.index(p.stem) if p.stem in LONG else len(LONG),
                                 "library" not in p.parts))

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", help="notebooks; all of nbs/ if none is named")
    p.add_argument("--check", action="store_true",
                   help="compare with the stored outputs, change nothing")
    p.add_argument("--skip", action="append", default=[],
                   help="a directive whose cells are left out, such as slow")
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--timeout", type=float,
                   help="seconds for one notebook (1200; none where slow cells run)")
    a = p.parse_args()
    a.skip = set(a.skip)
    prepare(a.workers)
    if a.timeout is None and "slow" in a.skip: a.timeout = 1200
    found = notebooks(a.files)
    if a.workers > 1: found = longest_first(found)
    with ThreadPoolExecutor(a.workers) as pool: words = list(pool.map(lambda f: one(f, a), found))
    if "DIFF" in words:
        print("if the new outputs are right, store them: python tools/run_nbs.py --skip slow "
              "NOTEBOOK")
    good = words.count("ok")
    print(f"{good} passed, {len(words) - good} failed")
    return good < max(1, len(words))

if __name__ == "__main__": sys.exit(main())
