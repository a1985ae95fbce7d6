"""Run what computes numbers as other machines would: under one setting at a time changed from the
plain run.

What computes numbers are the notebooks, compared with their stored outputs, and the tests marked
`numeric`. The plain run is what the environment gives. A setting that the processor or the system
lacks is left out, and why is said. Each has a cache of its own, but for the drawings, so that no
number was kept from another.

python tools/machines.py every setting python tools/machines.py ATEN fp32 the settings whose names
hold one of these words python tools/machines.py --list what would run here, and nothing more python
tools/machines.py plain --notebooks nbs/library/04_stats.ipynb --tests tests/study/test_scaling.py
"""
import argparse, json, locale, os, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVX2, AVX512 = {"avx2", "fma"}, {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"}
NEEDS = {("OPENBLAS_CORETYPE", "Haswell"): AVX2, ("OPENBLAS_CORETYPE", "Zen"): AVX2,
         ("OPENBLAS_CORETYPE", "SkylakeX"): AVX512,
         ("ATEN_CPU_CAPABILITY", "avx2"): AVX2, ("ATEN_CPU_CAPABILITY", "avx512"): AVX512}
LOCALES = "de_DE.UTF-8", "fr_FR.UTF-8", "tr_TR.UTF-8", "ja_JP.UTF-8" # the first that is installed
SHORT = "import sys; sys.path.insert(0, 'tools'); from machines import machine; machine()"

def threads(n): return {f"{k}_NUM_THREADS": str(n) for k in ("OMP", "OPENBLAS", "MKL")}

def installed(name):
    "Does this system have the locale `name`?"
    kept = locale.setlocale(locale.LC_ALL)
    try: return bool(locale.setlocale(locale.LC_ALL, name))
    except locale.Error: return False
    finally: locale.setlocale(locale.LC_ALL, kept)

def settings():
    "Name -> the variables that it changes; None takes one away."
    core = {f"OPENBLAS_CORETYPE={x}": dict(OPENBLAS_CORETYPE=x)
            for x in ("Haswell", "SkylakeX", "Zen")}
    aten = {f"ATEN_CPU_CAPABILITY={x}": dict(ATEN_CPU_CAPABILITY=x)
            for x in ("default", "avx2", "avx512")}
    other = next(filter(installed, LOCALES), "POSIX")
    spoken = f"LC_ALL={other}" + " (no other is installed)" * (other == "POSIX")
    return {"plain": {}, "OPENBLAS_CORETYPE unset": dict(OPENBLAS_CORETYPE=None), **core, **aten,
            "CCD_PRECISION=fp32": dict(CCD_PRECISION="fp32"), "one thread": threads(1),
            "two threads": threads(2),
            spoken: dict(LC_ALL=other), "TZ=Pacific/Apia": dict(TZ="Pacific/Apia"),
            "TZ=Asia/Kolkata": dict(TZ="Asia/Kolkata")}

def processor():
    "What the processor can do, as Linux lists it; None where nothing does."
    try:
        return set(re.search(r"^(?:flags|Features)\s*:(.*)$",
                             Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)[1].split())
    except (OSError, TypeError): return None

def lacking(change, flags, env):
    "Why a setting is left out, or nothing."
    if change and all(env.get(k) == v for k, v in change.items()): return "the plain run has it"
    missing = set().union(*(NEEDS.get(x, set()) for x in change.items())) - (flags or set())
    if missing and flags is None: return "which instructions the processor has is not known here"
    if missing: return f"the processor lacks {', '.join(sorted(missing))}"
    zone = change.get("TZ")
    return (f"the time zone {zone} is not installed" if zone
            and not Path("/usr/share/zoneinfo", zone).exists() else "")

def changed(env, change): return {k: v for k, v in (env | change).items() if v is not None}

def machine():
    "Print which kernels NumPy and PyTorch take, how many threads, and the precision of CCD."
    import numpy, torch, threadpoolctl
    from ccd.device import precision
    numpy.ones((64, 64)) @ numpy.ones((64, 64)) # a kernel that the processor lacks ends here
    blas = {p.get("architecture", "?")
            for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}
    print(json.dumps([*sorted(blas), torch.backends.cpu.get_cpu_capability(),
                      f"{torch.get_num_threads()} threads", precision()]))

# --- one setting

def run(cmd, env):
    p = subprocess.run(list(map(str, cmd)), cwd=ROOT, env=env, encoding="utf-8",
                       stdin=subprocess.DEVNULL, errors="replace",
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.returncode, p.stdout

def notebooks_of(said):
    """Notebook -> the lines that say what differs or failed, for those that are not ok; and how
    many are."""
    found = {m[1]: m[2].rstrip()
             for m in re.finditer(r"^(?:DIFF|FAIL) (\S+\.ipynb).*\n((?:    .*\n?)*)", said, re.M)}
    return found, len(re.findall(r"^ok   \S+\.ipynb", said, re.M))

def tests_of(said):
    "Test -> the first line of its error, for those that failed; and how many passed."
    found = {m[1]: m[2] or ""
             for m in re.finditer(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", said, re.M)}
    return found, int((re.findall(r"(\d+) passed", said) or [0])[-1])

def drawings():
    "Where the drawings of the user's cache lie, which are the same on every machine."
    from ccd.data.emoji import drawings as emoji
    from ccd.files import cache_dir
    emoji.drawings()
    return cache_dir("emoji").resolve()

def result(name, env, a):
    "A row for one setting: how it ran, what passed, what did not and why."
    rc, said = run([sys.executable, "-c", SHORT], env)
    if rc: return dict(name=name, left_out=f"it does not start (exit {rc})")
    row = dict(name=name, as_=", ".join(json.loads(said.splitlines()[-1])), left_out="")
    with tempfile.TemporaryDirectory() as cache:
        Path(cache, "emoji").symlink_to(drawings())
        return row | outcome(env | dict(CCD_CACHE=cache), a)

def outcome(env, a):
    "What passes, what does not and why, and the seconds."
    row, t0 = dict(bad={}, good=0), time.time()
    jobs = [("notebooks", notebooks_of,
             [sys.executable, "tools/run_nbs.py", "--check", "--skip", "slow", "--workers",
              a.workers, *a.notebooks]),
            ("tests", tests_of,
             [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-m", "numeric", "-n",
              a.workers if a.workers > 1 else 0,
                      *a.tests])]
    for what, read, cmd in jobs:
        if what in a.without: continue
        rc, said = run(cmd, env)
        bad, good = read(said)
        if rc and not bad:
            bad = {what: "\n".join(said.strip().splitlines()[-5:]) or f"exit {rc}, nothing said"}
        row["bad"] |= bad; row["good"] += good
    return row | dict(seconds=time.time() - t0)

# --- all of them

def table(rows):
    "Lines: a setting each, with how it ran, what passed and failed, and the time."
    for r in rows:
        if r["left_out"]: yield f"{'-':4} {r['name']:30} left out: {r['left_out']}"
        else:
            yield (f"{'FAIL' if r['bad'] else 'ok':4} {r['name']:30} {r['good']:4} passed "
                   f"{len(r['bad']):3} failed "
                   f"{r['seconds'] / 60:5.1f} min  {r['as_']}")

def differences(rows):
    "Lines: what failed under which settings, and the first line that says why."
    where = {}
    for r in rows:
        for k, why in r.get("bad", {}).items(): where.setdefault(k, []).append((r["name"], why))
    for k, found in sorted(where.items()):
        yield f"{k}: {', '.join(name for name, _ in found)}"
        yield from (f"    {line.strip()[:200]}" for line in found[0][1].splitlines()[:6])

def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("words", nargs="*",
                   help="settings whose names hold one of these words; all if none is given")
    p.add_argument("--list", action="store_true",
                   help="say what would run, and what is left out and why")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--notebooks", nargs="+", default=[],
                   help="these notebooks; all of nbs/ if none is named")
    p.add_argument("--tests", nargs="+", default=["tests"], help="numeric tests in these files")
    p.add_argument("--without", choices=["notebooks", "tests"], action="append", default=[])
    return p.parse_args()

def main():
    a, rows, flags = arguments(), [], processor()
    env = dict(os.environ,
               PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
               HF_HUB_OFFLINE="1", MPLBACKEND="agg",
               # one order for all settings
               NO_COLOR="1", CCD_TEST_SEED=os.environ.get("CCD_TEST_SEED", "0"))
    found = {k: v for k, v in settings().items() if not a.words or any(w in k for w in a.words)}
    if not found:
        return f"no setting is called {' or '.join(a.words)}; there are {', '.join(settings())}"
    for name, change in found.items():
        why = lacking(change, flags, os.environ)
        if why: rows.append(dict(name=name, left_out=why))
        elif a.list: print(f"{'run':4} {name}")
        else: rows.append(result(name, changed(env, change), a))
        if not a.list or why: print(*table(rows[-1:]), sep="\n", flush=True)
    bad = any(r.get("bad") for r in rows)
    if bad: print("\nwhat differed", *differences(rows), sep="\n")
    return int(bad)

if __name__ == "__main__": sys.exit(main())
