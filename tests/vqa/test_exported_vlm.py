"""A vision-language model, opened by transformers alone: the same prompt, the same logits, the same
answer, and a reason where transformers cannot hold it."""
import json, re, subprocess, sys
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from ccd.cli import main
from ccd.data.emoji.scenes import scenes
from ccd.data.emoji.questions import instructions
from ccd.files import UserError
from ccd.presets import apply_recipe, preset
from ccd.settings import override
from ccd.training.loop import train
from ccd.vqa.llava import exporting
from ccd.vqa.llava.conversations import question_conversations
from ccd.vqa.llava.generation import _generate, _open_prompts
from ccd.vqa.llava.settings import Stage, vlm_preset
from ccd.vqa.llava.training import load_vlm, train_vlm

SMOKE = override(preset("smoke"), **{"control.samples": 64, "analysis.knn_checks": 0})
VLM = replace(vlm_preset("smoke"), read=Stage(64, 32, 3e-3), tune=Stage(64, 32, 3e-3), questions=64)

def trained(recipe, home, vlm=VLM, **changes):
    own = apply_recipe(recipe, override(SMOKE, **changes))
    run = train(recipe, own, scenes(own.data, "train"), home / recipe, title=recipe)
    asked = question_conversations(instructions(own.data, 64), vlm)
    return train_vlm(f"ccd:{run}", vlm, None, asked, home / "vlm", home)

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("vlm")
    folder = trained("clip", home)
    main(["export", str(folder), "--to", "transformers", "--out", str(home / "out")])
    return folder, home / "out"

ALONE = """
import json, sys
sys.modules["ccd"] = None # it cannot be imported
from PIL import Image
image = Image.open("image.png")
{snippet}
ids = inputs["input_ids"][0].tolist()
logits = model(**inputs).logits[0, -1].tolist()
print(json.dumps(dict(ids=ids, logits=logits, answer=answer,
                      pixels=inputs["pixel_values"].tolist())))
"""

def test_transformers_alone_gives_the_same_prompt_logits_and_answer(made, tmp_path):
    folder, out = made
    size = SMOKE.control.vit.image_size
    noise = np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    snippet = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    (tmp_path / "alone.py").write_text(ALONE.format(snippet=snippet.replace("FOLDER", str(out))))
    done = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    vlm = load_vlm(folder)
    prompt, = _open_prompts(vlm, [dict(question="What is this?", options=[])], True, "", 8)
    assert said["ids"] == prompt.ids.tolist()
    card = vlm.encoder.card
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    pixels = torch.tensor(said["pixels"]) * std + mean
    assert torch.allclose(pixels[0], torch.from_numpy(noise).permute(2, 0, 1) / 255, atol=1e-5)
    tokens = vlm.encoder.features(pixels).patches.float()
    ids = torch.tensor([said["ids"]])
    with torch.no_grad(): ours = vlm.net(input_ids=ids, pixel_values=tokens).logits[0, -1]
    assert torch.allclose(ours, torch.tensor(said["logits"]), atol=1e-4 * float(ours.abs().max()))
    answer = _generate(vlm, [prompt], tokens, 20)[0]
    assert vlm.tokenizer.decode(vlm.tokenizer(answer)["input_ids"]).strip() in said["answer"]

def test_the_card_says_what_it_is(made):
    text = (made[1] / "README.md").read_text()
    assert "Dinov2Model" in text and "vLLM" in text and "clip, 64 samples" in text
    assert "/tmp" not in text and str(made[0]) not in text

@pytest.mark.parametrize("to, said", [
    ("timm", "expected --to transformers"), ("open_clip", "expected --to transformers")])
def test_other_formats_are_refused(to, said, made, tmp_path):
    with pytest.raises(UserError, match=said): exporting.export_llava(made[0], to, tmp_path / "o")

def test_a_folder_that_exists_is_kept(made):
    with pytest.raises(UserError, match="exists"):
        exporting.export_llava(made[0], "transformers", made[1])

@pytest.mark.parametrize("change, said", [
    (dict(layer=-1, norm="after"), "after the final norm"), (dict(fit="pad"), "center crop"),
    (dict(tokens=4), "resized")])
def test_what_transformers_cannot_hold(change, said, tmp_path):
    folder = trained("dino", tmp_path, replace(VLM, **change))
    with pytest.raises(UserError, match=said):
        exporting.export_llava(folder, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()

def test_an_unfinished_model_is_told(made, tmp_path):
    import shutil
    half = shutil.copytree(made[0], tmp_path / "half")
    (half / "tune/manifest.json").unlink()
    with pytest.raises(UserError, match="no finished vision-language model"):
        exporting.export_llava(half, "transformers", tmp_path / "out")

@pytest.mark.parametrize("template", exporting._CHATS)
def test_the_chat_is_that_of_the_training(template, made):
    vlm = load_vlm(made[0])
    vlm.settings = replace(vlm.settings, template=template, system="Be brief.")
    prompt, = _open_prompts(vlm, [dict(question="What is this?", options=[])], True, "", 8)
    said = [dict(role="user", content=[dict(type="image"), dict(type="text",
                                                                text="What is this?")])]
    text = vlm.tokenizer.apply_chat_template(said, chat_template=exporting._chat_template(vlm),
                                             add_generation_prompt=True, tokenize=False)
    ids = vlm.tokenizer(text)["input_ids"]
    place = ids.index(vlm.image)
    assert ids[:place] + [vlm.image] * vlm.tokens + ids[place + 1:] == prompt.ids.tolist()
