"Training goes on exactly where it stopped, and an audit tells two runs apart."
import random, shutil, signal
import numpy as np, pytest, torch
from ccd.training.audit import audit, match_compute
from ccd.files import UserError, read_json, write_json
from ccd.settings import DataSettings, override
from ccd.data.batches import BatchLoader, _epoch_order, sample_rows
from ccd.training.loop import _describe_data, train
from ccd.training.objectives import contrastive, distillation
from conftest import STEPS, outputs

@pytest.fixture(autouse=True)
def ctrl_c():
    "Ctrl-C interrupts, also where the tests run in the background and ignore it."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

class Killed(BaseException): pass

@pytest.mark.parametrize("name", ["clip", "dino"])
def test_resume_is_bit_identical(tiny, corpus, whole, tmp_path, name):
    for moment in sorted(random.Random(name).sample(range(1, STEPS), 2)):
        def hook(step, model):
            if step == moment: raise Killed
        with pytest.raises(Killed): train(name, tiny, corpus, tmp_path / "run", hook)
    train(name, tiny, corpus, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(whole / f"train/{name}-0")

@pytest.mark.parametrize("name, method",
                         [("ClipObjective", "after_step"), ("DinoObjective", "before_step"),
                                          ("DinoObjective", "after_step")])
def test_an_interrupt_within_a_step_loses_nothing(tiny, corpus, whole, tmp_path, monkeypatch, name,
                                                  method):
    own, calls = {**vars(contrastive), **vars(distillation)}[name], []
    real = getattr(own, method)
    def interrupted(self, t):
        calls.append(t)
        if len(calls) == 7: signal.raise_signal(signal.SIGINT)
        real(self, t)
    monkeypatch.setattr(own, method, interrupted)
    short = name[:4].lower()
    with pytest.raises(UserError, match=r"stopped after [67] of"):
        train(short, tiny, corpus, tmp_path / "run")
    train(short, tiny, corpus, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(whole / f"train/{short}-0")

def test_another_seed_gives_other_weights(tiny, corpus, whole, tmp_path):
    train("clip", override(tiny, **{"control.seed": 1}), corpus, tmp_path / "run")
    assert outputs(
        tmp_path / "run")[
            "encoder.safetensors"] != outputs(whole / "train/clip-0")["encoder.safetensors"]

def test_batches_do_not_depend_on_what_was_prepared(corpus, tiny):
    def same(a, b):
        return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(a, b))
    def fresh(step):
        return BatchLoader(corpus, tiny.control, tiny.data.size)(step)
    feed = BatchLoader(corpus, tiny.control, tiny.data.size)
    for step in (0, 1, 2, 7, 3, 4, STEPS - 1, 4): assert same(feed(step), fresh(step)), step
    assert not same(fresh(1), fresh(2))

@pytest.mark.parametrize("n, batch", [(10, 3), (7, 7), (5, 12)])
def test_every_epoch_sees_every_row_once(n, batch):
    rows = np.concatenate([sample_rows(n, 4, s, batch) for s in range(0, batch * n * 4, batch)])
    epochs = rows[:len(rows) // n * n].reshape(-1, n)
    assert (np.sort(epochs, 1) == np.arange(n)).all()
    assert (epochs == [_epoch_order(n, 4, e) for e in range(len(epochs))]).all()
    assert len(np.unique(epochs, axis=0)) > 1

def test_captions_of_a_picture_take_turns(tiny, corpus):
    feed = BatchLoader(corpus, tiny.control, tiny.data.size)
    said = [(corpus["captions"][int(r)].index(c)) for s in range(8)
            for r, c in zip(feed.rows(s), feed(s)[2])]
    assert set(said) == {0, 1, 2}

def unequal(a, b):
    t = audit(a, b)
    return set(t.setting[~t.equal])

def test_audit_of_a_controlled_pair(whole):
    t = audit(whole / "train/clip-0", whole / "train/dino-0").set_index("setting").equal
    same = ["images and captions", "training data", "order of samples", "first weights of the ViT",
            "precision", "architecture", "samples seen",
            "batch", "peak learning rate", "warm-up", "weight decay", "gradient clip",
            "base crop, area", "seed"]
    apart = ["objective", "weights evaluated", "views per sample, student", "trained parameters",
             "GFLOP per sample"]
    assert t[same].all() and not t[apart].any()

def test_audit_with_itself_finds_no_difference(whole):
    run = whole / "train/dino-0"
    assert unequal(run, run) == set()

@pytest.mark.parametrize("place, key, value, line", [
    ("settings.control", "lr", 0.5, "peak learning rate"),
    ("settings.control", "base_crop", [0.1, 1.0], "base crop, area"),
    ("settings.control", "seed", 5, "seed"), ("facts", "order", "another", "order of samples"),
    ("facts", "first_weights", "others", "first weights of the ViT"),
    ("inputs", "corpus", "another", "training data"),
    ("facts", "data", "emoji", "images and captions"),
    ("settings.own", "out_dim", 5, "own: out_dim")])
def test_audit_finds_a_change_and_nothing_else(whole, tmp_path, place, key, value, line):
    other = tmp_path / "other"
    shutil.copytree(whole / "train/dino-0", other, ignore=shutil.ignore_patterns("checkpoints"))
    m = at = read_json(other / "manifest.json")
    for p in place.split("."): at = at[p]
    assert at[key] != value
    at[key] = value
    write_json(other / "manifest.json", m)
    assert unequal(whole / "train/dino-0", other) == {line}

def test_the_audit_of_an_older_run_reads_what_it_was(whole, tmp_path):
    shutil.copytree(whole / "train/dino-0", tmp_path / "old")
    m = read_json(tmp_path / "old/manifest.json")
    assert m["settings"]["own"].pop("head_init") == "linear" # a setting that came later
    write_json(tmp_path / "old/manifest.json", m)
    t = audit(tmp_path / "old", whole / "train/dino-0").set_index("setting")
    assert list(t.loc["own: head_init"]) == ["trunc_normal", "linear", False]

def test_the_audit_says_the_data_without_a_path():
    assert (_describe_data(DataSettings(source="shards:/home/me/datacomp-12m"))
            == "shards:datacomp-12m")
    assert _describe_data(DataSettings(source="filter:light:/home/me/kept")) == "filter:kept"
    said = {_describe_data(DataSettings(**c))
            for c in ({}, dict(caption_policy="name+style"), dict(source="emoji:0.5"),
                      dict(scenes=9), dict(seed=1))}
    assert len(said) == 5

def test_samples_at_equal_compute(whole):
    t = audit(whole / "train/clip-0", whole / "train/dino-0").set_index("setting")
    fa, fb = (read_json(whole / f"train/{k}-0/facts.json") for k in ("clip", "dino"))
    line = t.loc["samples at the compute of the other"]
    assert (line.iloc[0] == f"{fb['flops'] / fa['flops_per_sample']:,.0f}"
            and fa["flops_per_sample"] < fb["flops_per_sample"])

def test_a_run_trained_for_the_compute_of_another(tiny, corpus, whole):
    matched = match_compute(("dino", tiny), ("clip", tiny), corpus)
    fa, fb = (read_json(whole / f"train/{k}-0/facts.json") for k in ("clip", "dino"))
    b = tiny.control.batch_size
    assert (abs(matched.control.samples * fb["flops_per_sample"] - fa["flops"])
            <= b * fb["flops_per_sample"] / 2)
    assert matched.control.samples % b == 0 and matched.dino == tiny.dino

def test_a_published_recipe_says_only_what_is_published(whole):
    t = audit(whole / "train/dino-0", "dino").set_index("setting")
    theirs = t["B"]
    assert (theirs["weight decay"] == "0.04 to 0.4, cosine"
            and theirs["gradient clip"] == "3, each tensor")
    assert not t.equal["drop path"] and t.equal["weights evaluated"]
    paper = audit("paper:clip", "paper:dino").set_index("setting")
    assert paper.equal[["architecture", "samples seen", "peak learning rate"]].all()
    assert (paper.loc[["batch", "weight decay", "warm-up", "augmentation"]].iloc[:, :2]
            == "not published").all(None)
