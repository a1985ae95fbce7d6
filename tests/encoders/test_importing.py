"""Published weights as initial weights: the same tensors after a way out and in, the same features
before the first step, and a reason where the network is another one."""
from dataclasses import replace
import pytest, torch
from ccd.cli import main
from ccd.data.emoji.scenes import scenes
from ccd.encoders.exporting import folders, source
from ccd.encoders.importing import import_weights
from ccd.encoders.loading import load
from ccd.files import UserError, read_json
from ccd.presets import apply_recipe, preset
from ccd.runs import read_manifest
from ccd.settings import ViT, override
from ccd.training.loop import train
from ccd.training.towers import TextTower, build_vit
from ccd.training.trainer import Trainer

SMOKE = override(preset("smoke"), **{"control.samples": 64, "analysis.knn_checks": 0})
VITS = {"plain": SMOKE.control.vit,
        "SwiGLU": ViT(width=48, depth=2, heads=2, patch_size=12, ffn="swiglu"),
        "LayerScale": ViT(width=48, depth=2, heads=2, patch_size=12, layer_scale=0.1)}

def noisy(net):
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    return net.eval()

def written(to, vit, home):
    projection = torch.randn(32, vit.width, generator=torch.Generator().manual_seed(1))
    text = noisy(TextTower(48, 2, 4, 24, 32)) if to == "open_clip" else None
    run = source._ExportedRun("CLIP", "clip", replace(SMOKE.control, vit=vit),
                              noisy(build_vit(vit)), projection, text)
    if why := source._refusal(run, to): pytest.skip(why)
    folders._WRITERS[to](run, home)
    return run.vision

@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("to, kind", [("timm", "timm"), ("transformers", "hf"),
                                      ("open_clip", "open_clip")])
def test_what_went_out_comes_in(name, to, kind, tmp_path):
    vision = written(to, VITS[name], tmp_path)
    found = import_weights(f"{kind}:{tmp_path}", VITS[name])
    back = build_vit(VITS[name]).eval()
    back.load_state_dict(found.state)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(): assert torch.allclose(back(pixels), vision(pixels), atol=1e-5)
    if to == "timm": # bit for bit
        assert all(torch.equal(found.state[n], t) for n, t in vision.state_dict().items())

def test_the_tower_of_dinos_authors(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel
    torch.manual_seed(3)
    net = noisy(ViTModel(ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=2,
                                   intermediate_size=192, image_size=48, patch_size=12),
                         add_pooling_layer=False))
    net.save_pretrained(tmp_path)
    ViTImageProcessor(size=dict(height=48, width=48)).save_pretrained(tmp_path)
    found, back = import_weights(f"hf:{tmp_path}", VITS["plain"]), build_vit(VITS["plain"]).eval()
    back.load_state_dict(found.state)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        theirs = net(pixel_values=pixels).last_hidden_state[:, 0]
        assert torch.allclose(back(pixels), theirs, atol=1e-3) # another epsilon of the norms

@pytest.mark.parametrize("recipe", ["clip", "dino", "clip-dino-views", "infonce", "mae",
                                    "supervised"])
def test_every_objective_begins_with_these_features(recipe, tmp_path):
    vision = written("timm", VITS["plain"], tmp_path)
    found, own = import_weights(f"timm:{tmp_path}", VITS["plain"]), apply_recipe(recipe, SMOKE)
    from ccd.presets import RECIPES
    corpus = scenes(own.data, "train")
    model = Trainer(RECIPES[recipe].objective, own, corpus, init_from=found).model
    wanted = vision.state_dict()
    for state in (model.vision.state_dict(), model.encoder_state()):
        assert all(torch.equal(state[name].cpu(), tensor) for name, tensor in wanted.items())

def test_more_pixels_resample_the_positions(tmp_path):
    written("timm", VITS["plain"], tmp_path)
    large = replace(VITS["plain"], image_size=72)
    assert import_weights(f"timm:{tmp_path}", large).state["pos_embed"].shape == (1, 37, 48)

@pytest.mark.parametrize("vit, why", [
    (ViT(width=96, depth=2, heads=2, patch_size=12), "cls_token is 1x1x48 there and 1x1x96 here"),
    (ViT(width=48, depth=3, heads=2, patch_size=12), "blocks.2.* is missing there"),
    (ViT(width=48, depth=2, heads=4, patch_size=12), "computes something else")])
def test_another_network_says_what_differs(vit, why, tmp_path):
    written("timm", VITS["plain"], tmp_path)
    with pytest.raises(UserError, match=why): import_weights(f"timm:{tmp_path}", vit)

def test_what_has_no_weights_for_a_vit(tmp_path):
    with pytest.raises(UserError, match="no initial weights in 'hog:8'"):
        import_weights("hog:8", VITS["plain"])
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPImageProcessor
    CLIPVisionModel(CLIPVisionConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=96, image_size=48, patch_size=12)
                    ).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights of CLIP.* do not fit our ViT"):
        import_weights(f"hf:{tmp_path}", VITS["plain"])

def test_the_command_and_the_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dino = train("dino", apply_recipe("dino", SMOKE), scenes(SMOKE.data, "train"),
                 tmp_path / "dino", title="DINO")
    main(["train", "clip", "--preset", "smoke", "--control.samples", "64", "--init-from",
          f"ccd:{dino}", "--out", "clip"])
    start = read_manifest(tmp_path / "clip")["settings"]["start"]
    assert start["encoder"] == f"ccd:{dino}" and len(start["revision"]) == 16
    assert f"from ccd:{dino}" in read_json(tmp_path / "clip/encoder.json")["training"]
    assert load(f"ccd:{tmp_path / 'clip'}").card.name == "CLIP"
    main(["audit", "clip", "clip"])
