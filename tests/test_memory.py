"""200,000 pictures in 1 GB: what the stages of a comparison hold is a block, a tile or an answer,
never all vectors of all encoders."""
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from ccd.comparison import agreement
from ccd import stats

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(),
                                reason="the kernel does not say how much memory a process has of "
                                       "its own")

@pytest.fixture(scope="module")
def held(tmp_path_factory):
    job = Path(__file__).with_name("memory_job.py")
    done = subprocess.run([sys.executable, job, tmp_path_factory.mktemp("vectors")],
                          capture_output=True, text=True,
                          env=os.environ
                          | dict(PYTHONPATH=os.pathsep.join(sys.path), CCD_PRECISION="fp32"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

@pytest.mark.parametrize("stage, most", [ # MB
    ("neighbors", 180), ("apart", 180), ("overlap", 60), ("pairs", 200), ("deals", 35),
    ("similarity", 60), ("equal", 70), ("bootstrap", 120)])
def test_a_stage_holds_little(held, stage, most): assert 0 < held[stage] < most, held

def test_deals_are_the_same_whoever_is_asked_for():
    family, rows = np.random.default_rng(0).integers(0, 40, 300).astype(str), np.array([5, 7, 250])
    assert (agreement._group_permutations(family,
                                          20)[:, rows]
            == agreement._group_permutations(family, 20, rows=rows)).all()

def test_draws_in_parts_are_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    value, cluster = rng.normal(size=500), rng.integers(0, 90, 500)
    whole = stats.cluster_bootstrap(value, cluster, 70)
    monkeypatch.setattr(stats, "_MAX_CELLS_IN_MEMORY", 1000)
    assert stats.cluster_bootstrap(value, cluster, 70) == whole
