"""What was trained here, opened by timm, transformers and open_clip alone: the same features, the
same cosines of 500 images, and a reason where a format cannot hold a run."""
import re, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from ccd.cli import main
from ccd.files import UserError, write_json
from ccd.presets import apply_recipe, preset
from ccd.settings import ViT, override
from ccd.training.loop import train
from ccd.training.towers import TextTower, build_vit
from ccd.data.emoji.scenes import scenes
from ccd.encoders.exporting import card, command, folders, source
from ccd.encoders.loading import load
from ccd.encoders.trained import load_run_text_encoder

SMOKE = override(preset("smoke"), **{"control.samples": 64, "analysis.knn_checks": 0})

def trained(name, home, **changes): # a run of two steps
    own = apply_recipe(name, override(SMOKE, **changes))
    return train({"clip": "clip", "siglip": "siglip", "dino": "dino"}[name], own,
                 scenes(own.data, "train"), home / name, title=name)

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    made = {name: trained(name, home) for name in ("clip", "siglip", "dino")}
    large = {"control.vit.ffn": "swiglu", "control.vit.layer_scale": 0.1}
    made["dino, SwiGLU"] = trained("dino", home / "swiglu", **large)
    return made

def noisy(net, scale=0.05): # far from its initialization, where biases are 0
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=draw)
    return net.eval()

VITS = {"plain": ViT(width=48, depth=2, heads=2, patch_size=12),
        "SwiGLU": ViT(width=48, depth=2, heads=2, ffn="swiglu"),
        "LayerScale": ViT(width=64, depth=3, heads=4, layer_scale=0.1)}

def exported(vit, text=False, bias=None):
    projection = torch.randn(32, vit.width, generator=torch.Generator().manual_seed(1))
    control = replace(SMOKE.control, vit=vit)
    tower = noisy(TextTower(48, 2, 4, 24, 32)) if text else None
    return source._ExportedRun("CLIP", "clip", control, noisy(build_vit(vit)), projection, tower,
                               2.5, bias)

# --- features

@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("to", source._FORMATS)
def test_the_other_library_gives_the_same_features(name, to, tmp_path):
    run = exported(VITS[name], text=to == "open_clip")
    if why := source._refusal(run, to): # tried below
        assert (name, to) == ("SwiGLU", "open_clip") and why
        return
    folders._WRITERS[to](run, tmp_path)
    assert command._difference(run, to, tmp_path) < 1e-5

@pytest.mark.parametrize("name", ["plain", "LayerScale"])
@pytest.mark.parametrize("to", ["transformers", "open_clip"])
@torch.no_grad()
def test_both_towers_give_the_same_vectors_and_logits(name, to, tmp_path):
    run = exported(VITS[name], text=True, bias=-10.0 if to == "open_clip" else None)
    folders._WRITERS[to](run, tmp_path)
    captions = ["a red heart", "Two dogs, and a cat in the house!"]
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    ours = run.text(run.text.tokenize(captions)), run.vision(pixels) @ run.projection.T
    if to == "open_clip":
        import open_clip
        model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(captions)
        theirs = model.encode_text(tokens), model.encode_image(pixels)
        assert float(model.logit_bias) == pytest.approx(-10)
    else:
        from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor
        model = VisionTextDualEncoderModel.from_pretrained(tmp_path).eval()
        processor = VisionTextDualEncoderProcessor.from_pretrained(tmp_path)
        tokens = processor.tokenizer(captions, return_tensors="pt", padding=True)
        both = model.get_text_features(**tokens), model.get_image_features(pixel_values=pixels)
        theirs = [getattr(out, "pooler_output", out) for out in both]
    assert float(model.logit_scale) == pytest.approx(2.5)
    for a, b in zip(ours, theirs): assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)

def test_a_caption_has_the_same_tokens_in_transformers(tmp_path):
    tower = TextTower(48, 2, 4, 24, 32)
    tokenizer = folders._clip_tokenizer(tower)
    captions = [text for row in scenes(SMOKE.data, "train").select(range(200))["captions"]
                for text in row] + ["it's 42 naïve café 🐶 ½", "UPPER  case", "salt &amp; pepper"]
    for caption in captions:
        ids = tower.tokenize([caption])[0].tolist()
        assert tokenizer(caption, truncation=True).input_ids == ids

# --- the command, on runs

def test_cosines_of_images_are_the_same(runs, tmp_path):
    composed = scenes(SMOKE.data, "train")
    images = [composed[index]["image"].convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)
              for index in range(500)]
    pixels = torch.stack([torch.tensor(np.array(image)).permute(2, 0, 1) / 255
                          for image in images])
    def cosines(encoder):
        vectors = torch.nn.functional.normalize(encoder.vector(pixels), dim=1)
        return vectors @ vectors.T
    ours = cosines(load(f"ccd:{runs['dino']}"))
    for to, kind in (("timm", "timm"), ("transformers", "hf")):
        home = command.export_encoder(str(runs["dino"]), to, tmp_path / to)
        assert (cosines(load(f"{kind}:{home}")) - ours).abs().max() < 1e-4

ALONE = """
import sys
sys.modules["ccd"] = None # to import it is an error
import torch, {library}
pixels = torch.load("{pixels}")
with torch.no_grad(): torch.save({call}, "{out}")
"""

@pytest.mark.parametrize("name, to, library, call", [
    ("dino", "timm", "timm", "timm.create_model('local-dir:HOME', pretrained=True).eval()(pixels)"),
    ("dino, SwiGLU", "timm", "timm",
     "timm.create_model('local-dir:HOME', pretrained=True).eval()(pixels)"),
    ("dino, SwiGLU", "transformers", "transformers",
     "transformers.AutoModel.from_pretrained('HOME').eval()(pixels).last_hidden_state[:, 0]"),
    ("siglip", "open_clip", "open_clip",
     "open_clip.create_model('local-dir:HOME').eval().encode_image(pixels)")])
def test_the_folder_needs_no_ccd(name, to, library, call, runs, tmp_path):
    home = command.export_encoder(f"ccd:{runs[name]}", to, tmp_path / "home")
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    torch.save(pixels, tmp_path / "pixels.pt")
    (tmp_path / "alone.py").write_text(ALONE.format(
        library=library, call=call.replace("HOME", str(home)), pixels=tmp_path / "pixels.pt",
        out=tmp_path / "out.pt"), encoding="utf-8")
    done = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, capture_output=True,
                          encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    encoder = load(f"ccd:{runs[name]}" + "#feature=projected" * (to == "open_clip"))
    with torch.no_grad(): ours = encoder._features(pixels)
    ours = ours.projected if to == "open_clip" else ours.cls
    assert torch.allclose(ours.cpu(), torch.load(tmp_path / "out.pt"), atol=1e-5, rtol=1e-5)

def test_the_text_tower_goes_along(runs, tmp_path):
    import open_clip
    home = command.export_encoder(str(runs["clip"]), "open_clip", tmp_path / "clip")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{home}")
    tokens = open_clip.get_tokenizer(f"local-dir:{home}")(["a dog", "a cat"])
    with torch.no_grad(): theirs = model.eval().encode_text(tokens, normalize=True)
    ours = load_run_text_encoder(runs["clip"])(["a dog", "a cat"])
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert transform(Image.new("RGB", (80, 60))).shape == (3, 48, 48)

# --- what cannot be held

def test_a_format_that_cannot_hold_a_run_says_why(runs, tmp_path):
    with pytest.raises(UserError, match="open_clip holds pairs"):
        command.export_encoder(str(runs["dino"]), "open_clip", tmp_path / "out")
    conv = exported(ViT(width=48, depth=2, heads=2, stem="conv"))
    for to in source._FORMATS: assert "convolutions" in source._refusal(conv, to)
    assert "SwiGLU" in source._refusal(exported(VITS["SwiGLU"], True), "open_clip")
    assert "checkpoint" in source._refusal(exported(VITS["plain"]), "open_clip")
    other = replace(exported(VITS["plain"]), text=torch.nn.Identity())
    assert "pretrained language model" in source._refusal(other, "open_clip")
    assert source._left_behind(other, "transformers") == ["the projection into the joint space",
                                                          "the text tower"]
    assert source._left_behind(exported(VITS["plain"], True, -10.0),
                               "transformers") == ["the bias of the logits"]
    assert not any(tmp_path.iterdir())

@pytest.mark.parametrize("change, why", [
    (lambda home: (home / "encoder.safetensors").unlink(), "holds no finished encoder"),
    (lambda home: write_json(home / "encoder.json", dict(name="x")), "encoder.json")])
def test_a_run_that_is_not_whole(change, why, runs, tmp_path):
    import shutil
    shutil.copytree(runs["dino"], tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(UserError, match=why):
        command.export_encoder(str(tmp_path / "run"), "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()

def test_a_folder_that_exists_and_other_features_change_nothing(runs, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists: choose another"):
        command.export_encoder(str(runs["dino"]), "timm", tmp_path / "mine")
    monkeypatch.setattr(command, "_their_vectors", lambda *_: lambda pixels: pixels.mean((2, 3)) @
                        torch.ones(3, 48))
    with pytest.raises(UserError, match="other features.*nothing is written"):
        command.export_encoder(str(runs["dino"]), "timm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

def test_the_command(runs, tmp_path, capsys):
    main(["export", str(runs["clip"]), "--to", "timm", "--out", str(tmp_path / "clip")])
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "clip")
    assert "timm cannot hold the projection into the joint space" in said.err
    with pytest.raises(SystemExit):
        main(["export", str(runs["clip"]), "--to", "timm", "--out", str(tmp_path / "clip")])
    assert "exists" in capsys.readouterr().err

# --- the card and the upload

def test_the_card_has_no_path_and_its_snippet_runs(runs, tmp_path):
    home = command.export_encoder(str(runs["dino"]), "timm", tmp_path / "out")
    text = (home / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
    assert "| images seen | 64 |" in text and "© Google, Apache-2.0" in text
    snippet = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("FOLDER", str(home))
    given = dict(image=Image.new("RGB", (90, 70), (20, 90, 160)))
    exec(snippet, given)
    assert given["vector"].shape == (1, 48)

def test_the_card_takes_accuracies_from_the_study(runs, tmp_path):
    import pandas as pd, shutil
    run = tmp_path / "study/train/dino-0"
    shutil.copytree(runs["dino"], run)
    tables = tmp_path / "study/probes/tables"; tables.mkdir(parents=True)
    pd.DataFrame([dict(encoder="DINO", spec="ccd:study/train/dino-0"),
                  dict(encoder="CLIP", spec="ccd:study/train/clip-0")]).to_csv(
        tables / "encoders.csv", index=False)
    pd.DataFrame([dict(encoder=name, task="category", linear=value, linear_ci_low=value - 0.02,
                       linear_ci_high=value + 0.02, n_test=500)
                  for name, value in (("DINO", 0.304), ("CLIP", 0.4))]).to_csv(
        tables / "accuracy.csv", index=False)
    assert card._rows_text(card._result_rows(run)).splitlines()[2:] == [
        "| category | 30.4 | 28.4 to 32.4 | 500 |"]

def test_nothing_is_uploaded_without_a_yes(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2_000_000)
    asked, done = [], []
    class Hub:
        def create_repo(self, name, private): done.append((name, private)); return f"hub/{name}"
        def upload_folder(self, repo_id, folder_path): done.append((repo_id, folder_path))
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    def say(answer): return lambda question: asked.append(question) or answer
    assert command.push_folder(tmp_path, "me/clip", ask=say("")) == "" and not done
    assert command.push_folder(tmp_path, "me/clip", ask=say("y")) == "hub/me/clip"
    assert done == [("me/clip", True), ("me/clip", str(tmp_path))]
    assert asked[0] == "Upload 1 files, 2.0 MB, to me/clip (private)? [y/N] "
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="there is no terminal"):
        command.push_folder(tmp_path, "me/clip")
    class Closed(Hub):
        def create_repo(self, name, private): raise PermissionError("403")
    monkeypatch.setattr("huggingface_hub.HfApi", Closed)
    with pytest.raises(UserError, match="could not be uploaded.*hf auth login"):
        command.push_folder(tmp_path, "them/clip", ask=say("y"))
