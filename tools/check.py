"""Everything CI runs: each step says what it found, all steps run, and the last line counts them.

The steps that use one core run one after the other beside the notebooks; what they say comes when
they are over."""
import os, re, shutil, signal, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# seconds for one step: more than a busy machine needs
ROOT, BIN, LIMIT = Path(__file__).resolve().parents[1], Path(sys.executable).parent, 3600
ENV = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", HF_HUB_OFFLINE="1",
           MPLBACKEND="agg",
           PYTHONHASHSEED="0", PYTHONUTF8="1", NO_COLOR="1")

LANE = threading.local()

def say(line):
    "Print a line, or keep it while the step runs beside others."
    if hasattr(LANE, "kept"): LANE.kept.append(line)
    else: print(line, flush=True)

def run(cmd, cwd=ROOT, **env):
    """Exit code and output of `cmd`, said as it comes; ended after LIMIT seconds with all it
    started."""
    p = subprocess.Popen(list(map(str, cmd)), cwd=cwd, env=ENV | env, encoding="utf-8",
                         stdin=subprocess.DEVNULL, errors="replace",
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    late, said = threading.Event(), []
    def end(): late.set(); os.killpg(p.pid, signal.SIGKILL)
    timer = threading.Timer(LIMIT, end)
    timer.start()
    try:
        for line in p.stdout: said.append(line); say("    " + line.rstrip("\n"))
        if late.is_set(): say(f"stopped after {LIMIT} s")
        return p.wait(), "".join(said)
    finally:
        timer.cancel()
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)

def tool(name, *args): return run([sys.executable, f"tools/{name}.py", *args])

def whole(rc): return (1, 0) if rc == 0 else (0, 1)

def counted(rc, said):
    "(passed, failed) as the last counts in `said` tell; a bad exit is at least one failure."
    lines = [f for l in said.splitlines() if (f := re.findall(r"(\d+) (passed|failed|error)", l))]
    n = {what: int(k) for k, what in lines[-1]} if lines else {}
    return n.get("passed", 0), max(n.get("failed", 0) + n.get("error", 0), int(rc != 0))

def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for d in ("nbs", "ccd")
            for p in sorted((root/d).rglob("*"))
            if p.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in p.parts}

def drift():
    "ccd/ is what the notebooks export, and they are clean: tried on a copy."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/ROOT.name; copy.mkdir()
        shutil.copy(ROOT/"settings.ini", copy)
        for d in ("nbs", "ccd"):
            shutil.copytree(ROOT/d, copy/d, ignore=shutil.ignore_patterns("__pycache__"))
        before, rcs = (contents(copy),
                       [run([BIN/c], copy)[0] for c in ("nbdev_clean", "nbdev_export")])
        after = contents(copy)
    stale = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    for k in stale: say(f"    {k}: out of step with the notebooks; run make export")
    return whole(stale or any(rcs) or not before)

PYTEST = ["-q", "--timeout", "1200", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder",
          "--durations", "25", "--durations-min", "5"]
STEPS = {
    "code reads": lambda: whole(run([sys.executable, "-m", "ruff", "check", "."])[0]),
    "notebooks and ccd/ agree": drift,
    "notebooks pass and reproduce": lambda: counted(*tool("run_nbs", "--check", "--skip", "slow",
                                                          "--workers", "2")),
    "README.md is current": lambda: whole(tool("readme", "--check")[0]),
    "site": lambda: whole(tool("site")[0]),
    "pytest": lambda: counted(*run([sys.executable, "-m", "pytest", *PYTEST, "tests"])),
}

ASIDE = "code reads", "notebooks and ccd/ agree", "README.md is current", "site" # one core

def step(name):
    "What a step found: its name, how many passed, how many failed, and its seconds."
    say(f"== {name}")
    t0 = time.time()
    good, bad = STEPS[name]()
    if good + bad == 0: say("    no test ran"); bad = 1
    return name, good, bad, time.time() - t0

def beside(names):
    "What steps found that ran while others did; what a step said is shown once it is over."
    rows = []
    for s in names:
        LANE.kept = []
        try: rows.append(step(s))
        finally: print(*LANE.kept, sep="\n", flush=True)
    return rows

def main():
    want = [s for s in STEPS if not sys.argv[1:] or any(w in s for w in sys.argv[1:])]
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(beside, [s for s in want if s in ASIDE])
        rows = [step(s) for s in want if s.startswith("notebooks pass")] + others.result()
    if "pytest" in want: rows.append(step("pytest")) # it looks at the site
    print()
    for s, good, bad, t in rows:
        print(f"{'FAIL' if bad else 'ok  '} {s:28} {good:4} passed {bad:4} failed {t:6.0f} s")
    good, bad = (sum(r[i] for r in rows) for i in (1, 2))
    print(f"{good} passed, {bad} failed", flush=True)
    return int(bad > 0 or not rows)

if __name__ == "__main__": sys.exit(main())
