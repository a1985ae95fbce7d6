"A tiny study that nothing disturbed, and ways to start, stop and kill others like it."
import ast, json, os, random, shutil, socket, sys, tempfile, time
from pathlib import Path
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings as hypothesis
os.environ.setdefault("OMP_NUM_THREADS", "1") # before torch; tiny nets are slower on many threads
from ccd.files import cache_dir
from ccd.settings import override
from ccd.presets import preset

ROOT = Path(__file__).resolve().parents[1]
for folder in ("tools", "tests/data"): sys.path.insert(0, str(ROOT / folder))
from ready import READY, Job, end

# HYPOTHESIS_PROFILE=thorough pytest tests/data/test_fuzz_sources.py
for name, examples in dict(ci=50, thorough=1_000).items():
    hypothesis.register_profile(name, max_examples=examples, deadline=None,
                                derandomize=name == "ci", database=None,
                                suppress_health_check=[HealthCheck.too_slow,
                                                       HealthCheck.function_scoped_fixture])
hypothesis.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

LONG = ("test_site", "test_embeddings", "test_kill", "test_parallel", "test_comparison",
        "test_scaling", "test_bad_input", "test_asking",
        "test_memory") # first, or one worker waits for another
# the workers find it there
SEED = os.environ.setdefault("CCD_TEST_SEED", str(random.SystemRandom().randrange(10**6)))

def pytest_configure(config):
    config.addinivalue_line("markers",
                            "numeric: computes numbers; tools/machines.py runs it under other "
                            "kernels")

def shuffled(items, seed):
    """`items` in a random order: files first, then the tests of each file; the longest files stay
    in front."""
    rng, files = random.Random(seed), {}
    for i in items: files.setdefault(i.path, []).append(i)
    order = rng.sample(sorted(files), len(files))
    order.sort(key=lambda p: LONG.index(p.stem) if p.stem in LONG else len(LONG))
    return [i for p in order for i in rng.sample(files[p], len(files[p]))]

def pytest_collection_modifyitems(items): items[:] = shuffled(items, SEED)

def pytest_report_header(): return said_order()

def pytest_terminal_summary(terminalreporter): # -q has no header
    terminalreporter.write_line(said_order())

def said_order(): return f"tests in a random order; this one again: CCD_TEST_SEED={SEED}"

CHANGES = {"control.samples": 320, "control.batch_size": 8, "data.max_emoji_images": 320,
           "analysis.n_resamples": 20, "runtime.checkpoint_minutes": 0.0}
OPTIONS = ["--preset", "smoke"] + [x for k, v in CHANGES.items()
                                   for x in (f"--{k}".replace("_", "-"), str(v))]
STEPS = CHANGES["control.samples"] // CHANGES["control.batch_size"]
# of a language model
FEW = ["questions=36", "read.samples=64", "align.samples=64", "tune.samples=64"]

READY.set_forkserver_preload(["ccd.cli", "ccd.study.command", "ccd.comparison.command",
                              "ccd.training.loop", "ccd.comparison.attribution",
                              "ccd.report.similarity", "ccd.data.corpora", "ccd.vqa.llava.training",
                              "ccd.comparison.linked_maps", "torch._dynamo",
                              "torch.distributed.fsdp", "sklearn.linear_model", "faiss", "timm",
                              "umap", "conftest"])

def _command(args):
    from ccd.cli import main
    main(args)

def job(function, *args, **env):
    """`function(*args)` in a process group of its own; Ctrl-C reaches it even where pytest ignores
    it."""
    said = tempfile.NamedTemporaryFile("w+")
    p = Job(function, *args, said=said.name, env=os.environ | {k: str(v) for k, v in env.items()})
    p.said = said
    return p

def start(*args, **env): return job(_command, list(map(str, args)), **env) # `ccd ARGS`

def two(function, *args):
    "`function(*args)` in two processes that find each other as those of `torchrun` do."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    jobs = [job(function, *args, RANK=r, LOCAL_RANK=r, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port) for r in range(2)]
    for said, code in map(finish, jobs): assert code == 0, said

def finish(p):
    "What it said, and its exit code; nothing that it started outlives it."
    try: p.wait(900) # only what hangs; a busy machine takes long
    finally: end(p)
    p.said.seek(0)
    return p.said.read(), p.returncode

def signal_when(p, seen, number, pause=0.0, group=False):
    "Send a signal once `seen()` is true, which must be before the end; then as `finish`."
    while not seen():
        assert p.poll() is None, f"ended with {p.returncode} before it was seen:\n{finish(p)[0]}"
        time.sleep(0.001)
    time.sleep(pause)
    os.killpg(p.pid, number) if group else p.send_signal(number) # a terminal signals the group
    return finish(p)

def step_of(run):
    "The newest step whose checkpoint has at least been begun."
    return max((int(p.name.partition("step-")[2][:8])
                for p in Path(run).glob("checkpoints/*step-*")), default=0)

def outputs(run): return json.loads((Path(run) / "manifest.json").read_text())["outputs"]

@pytest.fixture(autouse=True)
def same_chance():
    "What a test draws does not hang on which tests ran before it."
    random.seed(0)
    if "torch" in sys.modules: sys.modules["torch"].manual_seed(0)

@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the folder that `make` fills, called by the first test of all workers
    that asks for it."""
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: home = home.parent
    def folder(name, make):
        with FileLock(home / f"{name}.lock"):
            if not (home / f"{name}.made").exists():
                (home / name).mkdir()
                make(home / name)
                (home / f"{name}.made").touch()
        return home / name
    return folder

@pytest.fixture(scope="session", autouse=True)
def cache(once):
    "The drawings of the user's cache; corpora in one that goes with the tests."
    from ccd.data.emoji import drawings
    drawings.drawings()
    home = once("cache", lambda home: (home / "emoji").symlink_to(cache_dir("emoji").resolve()))
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CCD_CACHE", str(home))
        yield home

@pytest.fixture(scope="session")
def tiny(): return override(preset("smoke"), **CHANGES)

@pytest.fixture(scope="session")
def corpus(tiny):
    from ccd.data.corpora import open_corpus
    return open_corpus(tiny.data).corpus

@pytest.fixture(scope="session")
def whole(once):
    "The folder of an undisturbed study."
    def make(home):
        said, code = finish(start("study", *OPTIONS, "--out", home / "study"))
        assert code == 0, said
    return once("whole", make) / "study"

@pytest.fixture(scope="session")
def published(tiny, whole, once):
    "Where `results/smoke` holds what a study publishes."
    from ccd.study.command import export_study
    return once("published",
                lambda home: export_study(whole, home / "results" / "smoke", tiny, weights=True))

def is_import(source):
    return all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in ast.parse(source).body)

def slow_cell(notebook, **names):
    """Run the cell of a notebook that is marked slow, after its imports; it knows `names` and
    nothing else."""
    cells = ["".join(c["source"])
             for c in json.loads((ROOT / "nbs" / notebook).read_text())["cells"]
             if c["cell_type"] == "code"]
    slow, = (c for c in cells if c.startswith("#| slow"))
    for c in cells:
        if not c.startswith("#| slow") and not c.startswith("%") and is_import(c): exec(c, names)
    exec(slow, names)

@pytest.fixture(scope="module")
def browser():
    "Chromium, without a window."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                 None)
    if not found: pytest.skip("no chromium on PATH: no page is tried in a browser")
    sync = pytest.importorskip("playwright.sync_api",
                               reason="playwright is not installed: no page is tried in a browser")
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=found,
                              args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        yield b
        b.close()

@pytest.fixture(scope="module")
def local_ray():
    "Ray on this machine, two workers."
    ray = pytest.importorskip("ray")
    home = tempfile.mkdtemp(prefix="r") # short: sockets have short names
    with pytest.MonkeyPatch.context() as m:
        m.setenv("RAY_USAGE_STATS_ENABLED", "0"); m.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        try:
            yield ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20,
                           _temp_dir=home)
        finally: ray.shutdown(); shutil.rmtree(home, ignore_errors=True)
