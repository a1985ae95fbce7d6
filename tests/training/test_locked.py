"""LiT and frozen weights: what is locked stays, what the features hold is learned, a killed run
ends like an undisturbed one, and each misuse has its own message."""
import numpy as np, pytest, torch
import torch.nn.functional as F
from safetensors.torch import load_file
from ccd.data.corpora import open_corpus
from ccd.encoders.exporting.command import export_encoder
from ccd.encoders.importing import frozen_features, import_weights
from ccd.encoders.inputs import shared_init_spec
from ccd.encoders.loading import load
from ccd.encoders.trained import load_run_text_encoder
from ccd.files import UserError, read_json
from ccd.presets import apply_recipe, preset
from ccd.runs import read_manifest
from ccd.settings import Lit, override
from ccd.training.loop import metrics, train
from ccd.training.objectives.registry import build_objective
from ccd.training.towers import weights_hash
from ccd.training.trainer import FrozenFeatures, Trainer, on_device

SMOKE = override(preset("smoke"), **{"control.samples": 320, "data.scenes": 256})

@pytest.fixture(scope="module")
def corpus(): return open_corpus(SMOKE.data).corpus

def bag_of_words(corpus):
    texts = [" ".join(captions) for captions in corpus["captions"][:]]
    words = sorted({word for text in texts for word in text.split()})
    return np.array([[text.split().count(word) for word in words] for text in texts], np.float32)

def given(vectors): return FrozenFeatures(vectors, dict(encoder="hog:8", revision="x"), "HOG")

@pytest.fixture(scope="module")
def on_hog(corpus, tmp_path_factory):
    home = tmp_path_factory.mktemp("lit")
    features, corpus = frozen_features("hog:8", corpus, SMOKE, home / "features")
    return train("lit", SMOKE, corpus, home / "run", title="LiT on HOG", init_from=features)

def test_the_loss_is_clips_on_standardized_features(corpus):
    vectors = bag_of_words(corpus)
    trainer = Trainer("lit", SMOKE, corpus, init_from=given(vectors))
    batch = on_device(trainer.feed(0))
    rows = trainer.feed.rows(0)
    assert np.allclose(batch.images.cpu(), vectors[rows])
    std = vectors.std(0)
    features = torch.tensor((vectors[rows] - vectors.mean(0)) / np.where(std, std, 1)).float()
    model = trainer.model.float()
    image = F.normalize(features @ model.projection.weight.detach().cpu().T, dim=1)
    text = F.normalize(model.text(model.text.tokenize(batch.captions)).detach().cpu(), dim=1)
    logits = image @ text.T / SMOKE.lit.init_temperature
    plain = (F.cross_entropy(logits, torch.arange(len(rows)))
             + F.cross_entropy(logits.T, torch.arange(len(rows)))) / 2
    assert torch.allclose(model(model.batch(batch), 0.0)[0].detach().cpu(), plain, rtol=1e-3)

def test_a_text_tower_learns_what_the_features_hold(corpus, tmp_path):
    settings, vectors = override(SMOKE, **{"control.samples": 2560, "control.lr": 3e-3}), (
        bag_of_words(corpus))
    noise, recall = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32), {}
    said = [captions[0] for captions in corpus["captions"][:]]
    for name, each in (("words", vectors), ("noise", noise)):
        run = train("lit", settings, corpus.select(range(200)), tmp_path / name,
                    init_from=given(each[:200]))
        weights = load_file(run / "encoder.safetensors")
        images = (torch.tensor(each[200:]) @ weights["projection.weight"].T
                  + weights["projection.bias"])
        similarity = F.normalize(images, dim=1) @ load_run_text_encoder(run)(said[200:]).T
        right = similarity >= similarity.diagonal()[:, None]
        recall[name] = float((right.sum(1) <= 5).float().mean()) # chance: 5 of 56
    assert recall["words"] > recall["noise"] + 0.2

def test_a_killed_run_ends_like_an_undisturbed_one(corpus, tmp_path):
    class Killed(BaseException): pass
    def kill(step, model):
        if step == 4: raise Killed
    features, hasty = given(bag_of_words(corpus)), override(
        SMOKE, **{"runtime.checkpoint_minutes": 0.0})
    calm = train("lit", SMOKE, corpus, tmp_path / "calm", init_from=features)
    with pytest.raises(Killed):
        train("lit", hasty, corpus, tmp_path / "killed", on_step=kill, init_from=features)
    again = train("lit", hasty, corpus, tmp_path / "killed", init_from=features)
    assert read_manifest(again)["outputs"] == read_manifest(calm)["outputs"]

def test_the_run_loads_as_its_encoder_with_a_projection(on_hog):
    encoder, hog = load(f"ccd:{on_hog}"), load("hog:8")
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.vector(pixels), hog.vector(pixels))
    assert encoder.card.name == "LiT on HOG"
    weights = load_file(on_hog / "encoder.safetensors")
    wanted = hog.vector(pixels) @ weights["projection.weight"].T + weights["projection.bias"]
    projected = load(f"ccd:{on_hog}#feature=projected")
    assert torch.allclose(projected.vector(pixels), wanted, atol=1e-5)
    speak = load_run_text_encoder(on_hog)
    assert speak(["a sign"]).shape == projected.vector(pixels[:1]).shape

@pytest.mark.parametrize("act, said", [
    (lambda run: load(f"ccd:{run}#feature=pooled"), "choose other features where LiT is trained"),
    (lambda run: import_weights(f"ccd:{run}", SMOKE.control.vit), "its encoder is hog:8"),
    (lambda run: export_encoder(str(run), "timm", run.parent / "out"), "its encoder is hog:8")])
def test_a_run_without_an_encoder_of_its_own_says_so(act, said, on_hog):
    with pytest.raises(UserError, match=said): act(on_hog)

def test_another_encoder_under_the_same_name_is_told(on_hog, tmp_path):
    import json, shutil
    other = shutil.copytree(on_hog, tmp_path / "other")
    about = read_json(other / "encoder.json")
    about["frozen"]["revision"] = "HOG of old"
    (other / "encoder.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="that name loads HOG.* now"): load(f"ccd:{other}")

def test_two_runs_of_lit_share_no_initial_network(on_hog):
    assert shared_init_spec(f"ccd:{on_hog}", f"ccd:{on_hog}") == ""

@pytest.mark.parametrize("pattern, untouched", [("vision.*", "vision"), ("text.*", "text")])
def test_frozen_weights_stay(pattern, untouched, corpus, tmp_path):
    settings = override(SMOKE, **{"control.freeze": (pattern,)})
    before = {name: weights_hash(module) for name, module in
              build_objective("clip", settings).named_children()}
    run = train("clip", settings, corpus, tmp_path / "run")
    kept = load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors")
    moments = load_file(max((run / "checkpoints").glob("step-*")) / "optimizer.safetensors")
    model = build_objective("clip", settings)
    model.load_state_dict(kept, strict=False) # the mask of the text tower is no weight
    same = {name for name, module in model.named_children() if weights_hash(module) == before[name]}
    assert same == {untouched}
    assert moments and not [name for name in moments if name.startswith(f"{untouched}.")]

def test_freezing_costs_no_backward_pass(corpus):
    whole, locked = (Trainer("clip", override(SMOKE, **{"control.freeze": freeze}), corpus).flops
                     for freeze in ((), ("vision.*",)))
    assert locked < 0.7 * whole

@pytest.mark.parametrize("freeze, said", [
    (("visio.*",), "matches no weights of CLIP: their names begin with .*vision"),
    (("*",), "leaves no weights of CLIP to train")])
def test_a_pattern_that_makes_no_sense_is_refused(freeze, said, corpus):
    with pytest.raises(UserError, match=said):
        Trainer("clip", override(SMOKE, **{"control.freeze": freeze}), corpus)

def test_lit_without_an_encoder_and_with_other_rows(corpus):
    with pytest.raises(UserError, match="name it with --init-from"): Trainer("lit", SMOKE, corpus)
    with pytest.raises(UserError, match="stored features for 256 images"):
        Trainer("lit", SMOKE, corpus, init_from=given(np.ones((9, 4), np.float32)))

def test_lit_has_no_views():
    with pytest.raises(UserError, match="leave lit.views"): Lit(views="dino")
    assert apply_recipe("lit", SMOKE).lit == SMOKE.lit

def test_a_stream_has_no_rows(tmp_path):
    class Stream: pass
    with pytest.raises(UserError, match="no fixed rows"):
        frozen_features("hog:8", Stream(), SMOKE, tmp_path)

def test_metrics_go_to_trackio_too(corpus, tmp_path, monkeypatch):
    import sys, types
    told = []
    class Run:
        def log(self, numbers, step): told.append((step, numbers["loss"]))
    double, opened = types.ModuleType("trackio"), []
    double.init = lambda **how: opened.append(how) or Run()
    monkeypatch.setitem(sys.modules, "trackio", double)
    settings = override(SMOKE, **{"runtime.track": "mine"})
    run = train("dino", settings, corpus, tmp_path / "run")
    kept = metrics(run)
    assert [step for step, _ in told] == kept.step.tolist()
    assert [loss for _, loss in told] == pytest.approx(kept.loss.tolist())
    how = {name: opened[0][name] for name in ("project", "name", "resume")}
    assert how == dict(project="mine", name="run", resume="allow")
    assert read_manifest(run)["outputs"] == read_manifest(
        train("dino", SMOKE, corpus, tmp_path / "plain"))["outputs"] # it changes no result

def test_trackio_is_named_where_it_is_missing(corpus, tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"trackio: pip install -e '\.\[track\]'"):
        train("dino", override(SMOKE, **{"runtime.track": "mine"}), corpus, tmp_path / "run")
