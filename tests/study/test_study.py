"What a study publishes can be loaded, and stands in for the training that made it."
import json, shutil
import pytest, torch
from ccd.study import emoji
from ccd.training import loop
from ccd.files import UserError, file_hash, read_json
from ccd.settings import override
from ccd.presets import preset
from ccd.encoders.loading import load
from ccd.study.emoji import _command_of, _train_all, runs
from conftest import ROOT

def test_everything_published_is_sealed(published):
    home = published / "results/smoke"
    for seal in home.rglob("manifest.json"):
        outputs = read_json(seal)["outputs"]
        assert (outputs
                and all(file_hash(seal.parent / f) == v["sha256"] for f, v in outputs.items()))
    listed = set(read_json(home / "manifest.json")["outputs"])
    assert ({str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()} - listed
            == {"manifest.json"})

def test_half_precision_is_near_enough(published, whole):
    x = torch.rand(4, 3, 48, 48)
    for run in ("clip-0", "dino-0"):
        a, b = (load(f"ccd:{home}").vector(x)
                for home in (whole / "train" / run, published / "results/smoke/encoders" / run))
        assert torch.cosine_similarity(a, b).min() > 0.9999

def test_a_release_stands_in_for_training(published, tiny, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(published)
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    _train_all(tmp_path, tiny)
    assert {p.name for p in (tmp_path / "train").iterdir()} == {"clip-0", "dino-0"}
    _train_all(tmp_path, tiny)

def test_a_release_of_other_settings_does_not(published, tiny, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(published)
    trained = []
    monkeypatch.setattr(loop, "train", lambda objective, *_, **__: trained.append(objective))
    _train_all(tmp_path / "a", override(tiny, **{"control.lr": 1e-4}))
    with monkeypatch.context() as patch:
        patch.setattr(emoji, "_training_data", lambda *_: "another")
        _train_all(tmp_path / "b", tiny)
    _train_all(tmp_path / "c", override(tiny, **{"dino.out_dim": 32}))
    assert trained == ["clip", "dino", "clip", "dino", "dino"]

def test_the_released_runs_are_adopted_and_nothing_is_trained(tmp_path, monkeypatch):
    """Those of emoji-small.

    DINO's began by what `head_init` was before it was a setting, so the preset alone trains them
    anew."""
    monkeypatch.chdir(ROOT)
    made = {p.name: read_json(p / "manifest.json")["inputs"]["corpus"]
            for p in (ROOT / "results/emoji-small/encoders").iterdir()}
    monkeypatch.setattr(emoji, "_training_data",
                        lambda out, s, own: made["clip-0" if own.data == s.data
                                                 else "clip-shuffled-0"])
    for f in ("_train_corpus", "_knn_callback"): monkeypatch.setattr(emoji, f, lambda *_: None)
    monkeypatch.setattr(loop, "estimate_seconds", lambda *_: 0)
    trained, now = [], preset("emoji-small")
    monkeypatch.setattr(loop, "train",
                        lambda objective, s, corpus, out, *_: trained.append(out.name))
    before = override(now, **{"dino.head_init": "trunc_normal"})
    _train_all(tmp_path / "before", before)
    assert ({p.name for p in (tmp_path / "before/train").iterdir()} == set(made)
            == set(runs(before)) and trained == [])
    _train_all(tmp_path / "now", now)
    assert set(trained) == {r for r in made if r.startswith("dino")}

def test_the_best_release_is_found_by_name(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_RESULTS", str(tmp_path))
    with pytest.raises(UserError, match="no release of 'emoji/clip'.*CCD_RESULTS"):
        load("ccd:emoji/clip")
    def release(world, run, seed):
        return (
            shutil.copytree(published / "results/smoke/encoders/clip-0",
                            tmp_path / world / "encoders" / run),
            (tmp_path / world / "encoders" / run / "encoder.json").write_text(json.dumps(
                read_json(published / "results/smoke/encoders/clip-0/encoder.json")
                | dict(training=f"{world} {seed}"))))
    release("emoji-small", "clip-0",
            0), release("emoji-small", "clip-1", 1), release("emoji-small", "clip-minilm-4-0", 0)
    assert (load("ccd:emoji/clip").card.training == "emoji-small 0"
            and load("ccd:emoji/clip-1").card.training == "emoji-small 1")
    assert load("ccd:emoji/clip-minilm-4").card.training == "emoji-small 0"
    with pytest.raises(UserError, match="There are clip-0, clip-1, clip-minilm-4-0"):
        load("ccd:emoji/siglip")
    release("emoji", "clip-0", 0)
    assert load("ccd:emoji/clip").card.training == "emoji 0"

def test_variants_are_runs_of_their_own_recipes(tiny):
    found = runs(override(tiny,
                          **{"analysis.seeds": 2,
                             "analysis.variants": ("siglip", "clip-coarse", "clip-shuffled")}))
    assert (list(found)
            == ["clip-0", "dino-0", "clip-1", "dino-1", "siglip-0", "clip-coarse-0",
                "clip-shuffled-0"])
    assert found["clip-1"][1].control.seed == tiny.control.seed + 1
    assert found["clip-coarse-0"][1].control.vit.patch_size == 2 * tiny.control.vit.patch_size
    assert found["clip-shuffled-0"][1].data.caption_policy == "shuffled"

def test_the_command_says_what_was_changed(tiny):
    assert _command_of(override(tiny, **{"runtime.workers": 3})) == _command_of(tiny)
    assert ("--control.batch-size 8 " in _command_of(tiny) + " "
            and _command_of(tiny).startswith("ccd study --preset smoke "))
