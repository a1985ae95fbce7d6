"""The plug-in of lmms-eval: the same answers as the model's own, likelihoods that are those of a
plain forward pass, one image or none, and a manifest that lmms-eval can read."""
import sys, types
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from ccd.files import UserError
from ccd.presets import preset
from ccd.data.emoji.questions import instructions
from ccd.vqa.llava import harness
from ccd.vqa.llava.conversations import question_conversations
from ccd.vqa.llava.generation import _generate, _open_prompts
from ccd.vqa.llava.settings import Stage, vlm_preset
from ccd.vqa.llava.training import train_vlm

DATA = preset("smoke").data
VLM = replace(vlm_preset("smoke"), read=Stage(64, 32, 3e-3), tune=Stage(64, 32, 3e-3), questions=64)
IMAGE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 48, 3), np.uint8))
DOCUMENTS = {"task": {"test": [dict(image=IMAGE, answer="red heart"), dict(image=None)]}}

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    home = tmp_path_factory.mktemp("vlm")
    asked = question_conversations(instructions(DATA, 64), VLM)
    out = harness.LmmsEvalModel(str(train_vlm("random:0", VLM, None, asked, home / "m", home)))
    out.task_dict = DOCUMENTS
    return out

def visuals(document): return [document["image"]]
def request(*args): return SimpleNamespace(args=args)

def asked(text="What is this?", row=0, how=(), seen=visuals):
    return request(text, dict(how), seen, row, "task", "test")

def test_answers_are_the_models_own(model):
    vlm, pixels = model.vlm, torch.tensor(np.array(IMAGE)).permute(2, 0, 1)[None] / 255
    tokens = vlm.encoder.features(pixels).patches.float()
    prompt, = _open_prompts(vlm, [dict(question="What is this?", options=[])], True, "", 8)
    wanted = _generate(vlm, [prompt], tokens, 8)[0]
    assert model.generate_until([asked(how=dict(max_new_tokens=8))]) == [wanted]
    assert model.generate_until([asked("<image>What is this?", how=dict(max_new_tokens=8))]) == [
        wanted] # lmms-eval may mark the place of the image

def test_a_question_without_an_image_is_answered(model):
    said = model.generate_until([asked(row=1), asked(seen=lambda document: None)])
    assert said[0] == said[1] and isinstance(said[0], str)

def test_an_answer_ends_where_the_task_says():
    assert harness._until("a cat. It sits", [".", "\n"]) == "a cat"
    assert harness._until("a cat", "\n\n") == "a cat" and harness._until("a", [""]) == "a"

@pytest.mark.parametrize("target", ["red heart", lambda document: document["answer"]])
def test_a_likelihood_is_that_of_a_forward_pass(target, model):
    vlm, text = model.vlm, "What is this?"
    (found, greedy), = model.loglikelihood([request(text, target, visuals, 0, "task", "test")])
    prompt, = _open_prompts(vlm, [dict(question=text, options=[])], True, "", 8)
    answer = vlm.tokenizer(" red heart", add_special_tokens=False)["input_ids"]
    pixels = torch.tensor(np.array(IMAGE)).permute(2, 0, 1)[None] / 255
    ids = torch.tensor([[*prompt.ids, *answer]])
    with torch.no_grad():
        log_p = vlm.net(input_ids=ids, pixel_values=vlm.encoder.features(pixels).patches.float()
                        ).logits.float().log_softmax(-1)[0]
    places = len(prompt.ids) - 1 + np.arange(len(answer))
    assert found == pytest.approx(sum(float(log_p[p, t]) for p, t in zip(places, answer)), abs=1e-3)
    assert greedy == all(int(log_p[p].argmax()) == t for p, t in zip(places, answer))

@pytest.mark.parametrize("act, said", [
    (lambda m: m.generate_until([asked(seen=lambda document: [IMAGE, IMAGE])]), "with 2 images"),
    (lambda m: m.generate_until([asked("word " * 5000)]), "tokens longer than the"),
    (lambda m: m.generate_until_multi_round([]), "several rounds are not answered")])
def test_what_the_model_cannot_answer(act, said, model):
    with pytest.raises(UserError, match=said): act(model)

def test_lmms_eval_finds_it_by_its_entry_point(monkeypatch):
    @dataclass(frozen=True)
    class ModelManifest: # as in lmms-eval 0.7
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None
        aliases: tuple = ()
    registry = types.ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = ModelManifest
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    point, = [p for p in entry_points(group="lmms_eval.models") if p.name == "ccd"]
    manifest = point.load()()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert manifest.model_id == "ccd" and getattr(sys.modules[module], name).is_simple
