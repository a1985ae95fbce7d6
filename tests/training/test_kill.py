"Killed at any moment and started again, a study ends like one that nothing disturbed."
import json, os, random, shutil, signal
import pandas as pd, pytest
from ccd.files import slug, write_json
from ccd.runs import cached_stage
from ccd.study.command import _output_hashes
from ccd.training.loop import metrics, train
from conftest import OPTIONS, STEPS, finish, outputs, signal_when, start, step_of

# written by each call
LISTS = ("timing.jsonl", "left_out.csv", "atlas.parquet")
# not so late that the end may come first
TRAINING = sorted(random.Random(3).sample([(r, s) for r in ("clip-0", "dino-0")
                                           for s in range(1, STEPS - 10)], 3))

def moments(out, cache):
    "What shows that a stage is under way, what shows that it is over, and a part of a step."
    rng = random.Random(5)
    yield lambda: any(cache.glob("corpora/*")), out / "world", 0
    for run, step in TRAINING:
        yield (lambda: step_of(out / "train" / run) >= step, out / "train" / run / "manifest.json",
               rng.uniform(0, 0.03))
    yield lambda: any(out.glob("probes/vectors/*/*/manifest.json")), out / "probes/tables", 0
    for stage in ("probes/tables", "comparison/neighbors", "comparison/pairs", "comparison/maps"):
        home, name = (out / stage).parent, (out / stage).name
        yield lambda: any(home.glob(f".{name}.tmp-*")), out / stage, 0
    yield lambda: (out / "report").exists(), out / "report.html", 0

def hashes_of(out):
    """Hashes of all outputs but the lists of encoders. Folders are named by their encoders, whose
    names hold the folder of the study."""
    short = {slug(f"{kind}{out / 'train' / run}"): f"{kind}{run}" for kind in ("ccd:", "first:ccd:")
             for run in ("clip-0", "dino-0")}
    return {"/".join(short.get(part, part) for part in name.split("/")): digest
            for name, digest in _output_hashes(out).items() if not name.endswith("encoders.csv")}

def test_killed_in_every_stage(tmp_path, cache, whole):
    out, own = tmp_path / "study", tmp_path / "cache"
    own.mkdir(); (own / "emoji").symlink_to((cache / "emoji").resolve())
    command = ["study", *OPTIONS, "--out", out]
    for seen, over, pause in moments(out, own):
        code = signal_when(start(*command, CCD_CACHE=own), seen, signal.SIGKILL, pause)[1]
        assert code == -signal.SIGKILL and not over.exists(), over
    said, code = finish(start(*command, CCD_CACHE=own))
    assert code == 0, said
    assert hashes_of(out) == hashes_of(whole)
    for run in ("clip-0", "dino-0"):
        kills = sum(r == run for r, _ in TRAINING)
        timed = [json.loads(l)
                 for l in (out / "train" / run / "timing.jsonl").read_text().splitlines()]
        # it went on, it did not begin again
        assert sum("step" in t for t in timed) <= STEPS // 10 + kills

def test_a_second_study_recomputes_nothing(whole, tmp_path):
    from ccd.cli import main
    out = tmp_path / "study"
    def files(): # reports are written again from their tables
        return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()
                and p.suffix not in (".html", ".txt") and p.name not in LISTS}
    main(["study", *OPTIONS, "--out", str(out)])
    before = files()
    main(["study", *OPTIONS, "--out", str(out)])
    assert files() == before

def test_the_report_follows_what_it_reports(whole, tmp_path):
    from ccd.study.sections import _probe_section
    out = shutil.copytree(whole / "probes", tmp_path / "probes")
    encoders = [f"ccd:{whole / 'train' / run}" for run in ("clip-0", "dino-0")]
    assert ">12.3 (" not in _probe_section(out, encoders)["body"]
    table = pd.read_csv(out / "tables/accuracy.csv")
    table.assign(linear=0.123).to_csv(out / "tables/accuracy.csv", index=False)
    assert ">12.3 (" in _probe_section(out, encoders)["body"]

class Killed(BaseException): pass

def kill_at(step):
    def hook(done, model):
        if done == step: raise Killed
    return hook

@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_cut_line_does_no_harm(tiny, corpus, whole, tmp_path, name):
    with pytest.raises(Killed): train("clip", tiny, corpus, tmp_path / "run", kill_at(25))
    with open(tmp_path / "run" / name, "a") as f: f.write('{"step": 30, "ti')
    train("clip", tiny, corpus, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(whole / "train/clip-0")
    assert metrics(tmp_path / "run").step.tolist() == [*range(10, STEPS + 1, 10)]

def test_stale_checkpoints_do_no_harm(tiny, corpus, whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed): train("dino", tiny, corpus, run, kill_at(7))
    stale = run / "checkpoints/.step-00000039.tmp-1"
    stale.mkdir(); (stale / "model.safetensors").write_text("half")
    train("dino", tiny, corpus, run)
    assert outputs(run) == outputs(whole / "train/dino-0") and not stale.exists()

def dead_pid():
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
    return pid

def test_stale_stages_are_no_results_and_are_swept(tmp_path):
    def make(tmp):
        return write_json(tmp / "one.json", 1)
    cached_stage(tmp_path / "made", {}, {}, make)
    want = _output_hashes(tmp_path)
    stale = tmp_path / f".made.tmp-{dead_pid()}" # killed between its manifest and its name
    cached_stage(stale, {}, {}, make)
    assert _output_hashes(tmp_path) == want
    cached_stage(tmp_path / "made", dict(other=1), {}, make)
    assert not stale.exists()
