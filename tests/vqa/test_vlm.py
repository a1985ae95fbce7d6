"""LLaVA against transformers' own, answers against a plain loop, training against training that was
killed."""
import json, os
from dataclasses import replace
import numpy as np, pytest, torch
from torch.nn import functional as F
from ccd.data.emoji import scenes
from ccd.vqa.llava import (answering, conversations, features, model as llava_model,
                           settings as llava_settings,
                           training as llava_training)
from ccd.files import UserError, to_plain_dict
from ccd.settings import DataSettings, RuntimeSettings
from ccd.encoders.base import Encoder, EncoderCard, Features
from ccd.encoders.loading import load
from ccd.data.emoji.questions import emoji_questions
from ccd.probing.patches import pixel_patches
from ccd.data.corpora import ImageDecoder
from ccd.training.trainer import learning_rate
from ccd.vqa.statistics.answers import _check_answers
import tiny_llava
from conftest import finish, job, two
from vlm_job import main, training

WORLD = DataSettings(scenes=512, test_scenes=192)
SETTINGS = replace(llava_settings.vlm_preset("smoke"),
                   runtime=RuntimeSettings(checkpoint_minutes=0.0))

@pytest.fixture(scope="module")
def home(tmp_path_factory): # nothing of this is left in the cache
    return tmp_path_factory.mktemp("vlm")

@pytest.fixture(scope="module")
def talks(): return conversations._emoji_conversations(WORLD, SETTINGS)

@pytest.fixture(scope="module")
def model(home, talks):
    llava_training.train_vlm("random:0", SETTINGS, *talks, home / "model", home)
    return llava_training.load_vlm(home / "model")

@pytest.fixture(scope="module")
def asked(): return emoji_questions(WORLD, per_subset=8).select(range(0, 128, 3))

# --- the model is transformers' own

@pytest.fixture(scope="module")
def theirs(tmp_path_factory): # a LLaVA that transformers has saved
    folder = tmp_path_factory.mktemp("theirs")
    return folder, *tiny_llava.saved(folder, ["What is it? a red heart"] * 5, 300, 128)

def inputs(tok, n=16):
    s = conversations._tokenized(conversations._Conversations(None,
                                                              [[("What is it?", "a red heart")],
                                                               [("Is it?", "red")]],
                                                              np.array([0, 1])), tok, "v1",
                                 llava_settings._SYSTEM)
    laid = [llava_model._pad_sample(s, k, tok.convert_tokens_to_ids(conversations._IMAGE_TOKEN), n,
                                    999)[:2] for k in range(2)]
    return llava_model._collate(laid, tok.pad_token_id)

def test_the_same_logits_as_transformers(theirs):
    folder, net, tok = theirs
    ours = llava_training.published_vlm(str(folder), mean=(0.1,) * 3, std=(0.7,) * 3)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = inputs(tok)
    pixels = (images / 255 - 0.1) / 0.7
    with torch.no_grad():
        want = net(input_ids=batch["ids"], pixel_values=pixels, attention_mask=batch["mask"])
        tokens = features._tokens_of(ours.encoder, images)
        got = ours.net.lm_head(ours.read(batch["ids"], tokens, attention_mask=batch["mask"]))
    seen = batch["mask"].bool()
    assert (got - want.logits)[seen].abs().max() < 1e-4 and want.logits[seen].std() > 0.1
    assert ours.encoder.card.layer == "2 of 3" and tokens.shape == (2, 16, 24)

def test_the_same_weights_in_our_own_build(theirs):
    "llava() around their language model, their tower as an encoder by name."
    from transformers import CLIPVisionModel, LlamaForCausalLM
    folder, net, tok = theirs
    tower = CLIPVisionModel(net.config.vision_config)
    target = tower.vision_model if hasattr(tower, "vision_model") else tower
    source = net.model.vision_tower
    target.load_state_dict((source.vision_model if hasattr(source, "vision_model")
                            else source).state_dict())
    tower.save_pretrained(folder / "tower")
    spec = features._spec_with_layer(
        f"hf:{folder / 'tower'}#resize=squash,size=32,interpolation=bicubic,mean=half,std=half",
        llava_settings.VlmSettings())
    e = load(spec)
    assert spec.endswith(",layer=-2,final_norm=false")
    language = LlamaForCausalLM(net.config.text_config)
    language.model.load_state_dict(net.model.language_model.state_dict())
    language.lm_head.load_state_dict(net.lm_head.state_dict())
    ours = llava_model.Vlm(llava_model._build_llava(language, tok, 24, 16), tok,
                           llava_settings.VlmSettings(), e).eval()
    ours.net.model.multi_modal_projector.load_state_dict(
        net.model.multi_modal_projector.state_dict())
    images, batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), inputs(tok)
    mean, std = (torch.tensor(x)[:, None, None] for x in (e.card.mean, e.card.std))
    with torch.no_grad():
        want = net(input_ids=batch["ids"], pixel_values=(images / 255 - mean) / std,
                   attention_mask=batch["mask"]).logits
        got = ours.net.lm_head(ours.read(batch["ids"], features._tokens_of(e, images),
                                         attention_mask=batch["mask"]))
    assert (got - want)[batch["mask"].bool()].abs().max() < 1e-4

def test_the_loss_is_transformers_loss_however_the_batch_is_divided(theirs):
    folder, net, tok = theirs
    ours = llava_training.published_vlm(str(folder)).requires_grad_(True)
    batch, tokens = inputs(tok), torch.randn(2, 16, 24)
    labels = batch["ids"].masked_fill(~batch["learnt"], -100)
    want = ours.net(input_ids=batch["ids"], pixel_values=tokens, attention_mask=batch["mask"],
                    labels=labels).loss
    total = batch["learnt"][:, 1:].sum()
    batch |= dict(tokens=tokens, share=torch.full((2,), 2 / total))
    loss, _ = ours(batch, 0.0)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    parts = [ours({k: x[i:i + 1] for k, x in batch.items()}, 0.0)[0] / 2 for i in (0, 1)]
    assert sum(parts).item() == pytest.approx(want.item(), rel=1e-5)

# --- text and mask

def test_talks_of_several_turns_learn_every_answer():
    tok = conversations._train_bpe(["what is it a heart"], 300)
    t = conversations._Conversations(None, [[("What?", "a heart"), ("Red?", "yes, it is")]],
                                     np.array([0]))
    s = conversations._tokenized(t, tok, "v1", "Be kind.")
    assert (tok.decode(s.ids)
            == "<s>Be kind. USER: <image>\nWhat? ASSISTANT: a heart</s>USER: Red? ASSISTANT: yes, "
               "it is</s>")
    assert tok.decode(s.ids[s.learnt]) == " a heart</s> yes, it is</s>"
    plain = conversations._tokenized(conversations._Conversations(None, [[("ignored", "a heart")]],
                                                                  np.array([0])), tok, "plain",
                                     "ignored too")
    assert (tok.decode(plain.ids) == "<s><image>a heart\n"
            and tok.decode(plain.ids[plain.learnt]) == "a heart\n")
    l3 = conversations._tokenized(t, tok, "llama-3")
    assert tok.decode(l3.ids[l3.learnt]) == "a heart<|eot_id|>yes, it is<|eot_id|>"

def test_tokens_are_the_same_each_time(talks):
    texts = [x for t in talks[0].turns for x in t[0]]
    assert (conversations._train_bpe(texts, 400).get_vocab()
            == conversations._train_bpe(texts, 400).get_vocab())

def test_a_text_that_is_not_whole_is_refused(model, talks):
    tok, stage = model.tokenizer, llava_settings.Stage(4, 2)
    with pytest.raises(UserError, match="1 of 2 conversations have no answer to train on: +1"):
        conversations._tokenized(conversations._Conversations(None, [[("a", "b")], []],
                                                              np.array([-1, -1])), tok, "v1")
    with pytest.raises(UserError, match="contain <image> in their text, such as 0"):
        conversations._tokenized(conversations._Conversations(None, [[("what is <image>", "b")]],
                                                              np.array([0])), tok, "v1")
    with pytest.raises(UserError, match="these images have none"):
        conversations._caption_conversations(talks[1].corpus)
    with pytest.raises(UserError, match="unknown template"):
        conversations._tokenized(talks[0], tok, "v9")
    s = conversations._tokenized(conversations._Conversations(None, [[("a", "b")]] * 4,
                                                              np.array([-1] * 4)), tok, "v1")
    with pytest.raises(UserError, match="conversation 0 has 0 image tokens and 1 images"):
        llava_model._ConversationLoader(s._replace(picture=np.zeros(4, int)), None, model, stage, 0)
    long = conversations._tokenized(conversations._Conversations(None,
                                                                 [[("a", "b " * 300)],
                                                                  [("a", "b")]],
                                                                 np.array([-1, -1])), tok, "v1")
    assert llava_model._ConversationLoader(long, None, model, stage, 0).cut == 1
    gone = conversations._tokenized(conversations._Conversations(None,
                                                                 [[("a " * 300, "b")],
                                                                  [("a", "b")]],
                                                                 np.array([-1, -1])), tok, "v1")
    with pytest.raises(UserError,
                       match="1 conversations have no answer within 256 tokens, such as 0"):
        llava_model._ConversationLoader(gone, None, model, stage, 0)

def test_batches_hold_whole_samples_and_the_tokens_of_their_pictures(model, talks, home):
    s = conversations._tokenized(talks[1], model.tokenizer, "v1")
    shelf = features._cache_patch_tokens(model.encoder, talks[1].corpus, home=home)
    feed = llava_model._ConversationLoader(s, shelf, model, llava_settings.Stage(320, 32), 0)
    batch, rows = feed(3), feed.rows(3)
    for b, r in enumerate(rows):
        ids = batch["ids"][b][batch["mask"][b].bool()]
        text = model.tokenizer.decode(ids)
        assert text.count(conversations._IMAGE_TOKEN) == 36 and talks[1].turns[r][0][0] in text
        said = model.tokenizer.decode(batch["ids"][b][batch["learnt"][b]])
        assert said == f" {talks[1].turns[r][0][1]}</s>"
        assert torch.equal(batch["tokens"][b], shelf[[r]][0])
    assert batch["share"][0].item() == pytest.approx(32 / batch["learnt"].sum().item())

def test_llavas_own_files_are_read(tmp_path):
    from PIL import Image
    for n in "ab": Image.new("RGB", (9, 7), (ord(n), 0, 0)).save(tmp_path / f"{n}.png")
    def talk(*xs):
        return [{"from": "human" if k % 2 == 0 else "gpt", "value": x} for k, x in enumerate(xs)]
    rows = [dict(id=1, image="b.png",
                 conversations=talk("What?\n<image>", "a thing", "More?", "no")),
            dict(id=2, conversations=talk("Hello", "hi"))]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    t = conversations._load_llava_json(tmp_path / "x.json", tmp_path)
    assert (t.turns == [[("What?", "a thing"), ("More?", "no")], [("Hello", "hi")]]
            and t.picture.tolist() == [0, -1])
    assert conversations._messages(t.turns[0], True, "v1")[0]["content"] == "<image>\nWhat?"
    assert ImageDecoder(t.corpus, 4)[[0]][0, 0, 0, 0] == ord("b")
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="1 of 1 images"):
        conversations._load_llava_json(tmp_path / "x.json", tmp_path)

# --- files of LLaVA

def said(*messages):
    return dict(conversations=[{"from": who, "value": text} for who, text in messages])

QA = (("human", "What is it?"), ("gpt", "a cat"))

@pytest.mark.parametrize("messages, dropped", [
    (QA, []), ((("system", "Be nice"), *QA), ["a system message"]),
    ((("gpt", "Hi, I am G"), *QA), ["an answer before any question"]),
    ((("system", "Be nice"), ("gpt", "Hi"), *QA, ("human", "And?")),
     ["a system message", "an answer before any question", "a question without an answer"]),
    ((("user", "What is it?"), ("assistant", "a cat")), [])])
def test_who_speaks_is_read(messages, dropped):
    c = conversations._conversation(said(*messages))
    assert c.turns == [("What is it?", "a cat")] and [why for _, why in c.dropped] == dropped
    assert len(messages) == 2 * len(c.turns) + len(c.dropped)

@pytest.mark.parametrize("row, why", [
    (said(("human", "one"), ("human", "two"), ("gpt", "a cat")), "two messages of human in a row"),
    (said(*QA, ("gpt", "indeed"), ("human", "?")), "two messages of gpt in a row"),
    (said(QA[0], ("system", "Hush"), QA[1], QA[0]), "a system message in the middle"),
    (said(("human", "one")), "no question with an answer"),
    (said(QA[0], ("gpt", "")), "an empty answer"),
    (said(QA[0], ("gpt", None)), "no text, but null"),
    (said(QA[0], ("gpt", 3)), "no text, but a int"),
    (said(QA[0], ("gpt", "\ud800")), "half a character"),
    (said(QA[0], ("robot", "x")), "from 'robot'"),
    (said((["human"], "x")), "from \"\\['human'\\]\""),
    (dict(conversations=["Hi"]), "no object, but a str"),
    (dict(id=1), "no conversations"), (dict(conversations=[]), "no conversations"),
    (dict(conversations={}), "no conversations"),
    (None, "no object, but null"), (3, "no object, but a int"), ([], "no object, but a list"),
    (said(*QA) | dict(image=["a", "b"]), "several images"),
    (said(*QA) | dict(image=3), "no file name"), (said(*QA) | dict(video="a.mp4"), "a video"),
    (said(("human", "<image> What?"), QA[1]), "1 times <image> in its text, and no image"),
    (said(("human", "<image> or <image>?"), QA[1]) | dict(image="a.png"),
     "2 times <image> in its text, and one image")])
def test_what_cannot_be_paired_says_why(row, why):
    with pytest.raises(conversations._Unusable, match=why): conversations._conversation(row)

@pytest.fixture
def cats(tmp_path): # a folder of images
    from PIL import Image
    for k in range(4): Image.new("RGB", (9, 7), (50 * k, 0, 0)).save(tmp_path / f"{k}.png")
    return tmp_path

def pictured(k, *messages): return dict(id=f"c{k}", image=f"{k}.png") | said(*(messages or QA))

@pytest.mark.parametrize("write", [
    lambda rows: json.dumps(rows).encode(),
    lambda rows: json.dumps(rows, indent=1).replace("\n", "\r\n").encode("utf-8-sig"),
    lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    lambda rows: "\r\n".join([*map(json.dumps, rows), "", ""]).encode("utf-8-sig")])
def test_a_list_and_lines_hold_the_same(cats, write):
    (cats / "c").write_bytes(write([pictured(0), pictured(1)]))
    t = conversations._load_llava_json(cats / "c", cats)
    assert (t.turns == [[("What is it?", "a cat")]] * 2 and t.picture.tolist() == [0, 1]
            and t.skipped.empty)

@pytest.mark.parametrize("text, why", [
    (None, "No such file"), ("", "no JSON"), ("[]", "an empty list"), ("null", "JSON null"),
    ("3", "JSON 3"), ('"a"', "JSON"), ("[{", "no JSON"),
    ("[" * 100_000, "no JSON"), (b"\xff\xfe[\x00]\x00", "not UTF-8: byte 0 is 0xff"),
    ("[null, 3]", "none of 2 conversations.*1 no object, but null"),
    ("{}", "none of 1 conversations .*no conversations; the first is number 1"),
    ('{"a": 1}\n{', "none of 2 conversations"), ("1" * 5000, "no JSON")])
def test_a_file_without_conversations_says_so(tmp_path, text, why):
    if text is not None:
        (tmp_path / "c").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=why):
        conversations._load_llava_json(tmp_path / "c", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        conversations._load_llava_json(tmp_path, tmp_path)

def test_used_and_listed_are_all_that_was_there(cats, capsys):
    rows = [pictured(0), None, pictured(1, *QA, ("human", "And?")),
            pictured(2, QA[0], QA[0], QA[1]), said(*QA), dict(id="x"), dict(id="y")]
    (cats / "c").write_text("\n".join([*map(json.dumps, rows), '{"id": 3, "conv']))
    t = conversations._load_llava_json(cats / "c", cats)
    whole = t.skipped[t.skipped.excluded == "conversation"]
    assert t.picture.tolist() == [0, 1, -1] and len(t.turns) + len(whole) == len(rows) + 1
    assert whole.row.tolist() == [2, 4, 6, 7, 8] and whole.id.tolist() == ["", "c2", "x", "y", ""]
    other = t.skipped[t.skipped.excluded != "conversation"]
    assert other.values.tolist() == [[3, "c1", "message 3", "a question without an answer"]]
    err = capsys.readouterr().err
    assert ("5 of 8 conversations are left out: 2 no conversations;" in err
            and "1 messages of the others" in err)

# --- tokens of pictures

def replaced(file, color): # as long and as old as before
    from PIL import Image
    old = file.stat()
    Image.new("RGB", (48, 48), color).save(file)
    file.write_bytes(file.read_bytes().ljust(old.st_size, b"\0"))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)

def noise(file, k):
    from PIL import Image
    Image.fromarray(np.random.default_rng(k).integers(0, 255, (48, 48, 3), np.uint8)).save(file)

def test_a_picture_is_known_by_its_content(tmp_path, monkeypatch):
    import shutil
    monkeypatch.setattr(features, "_IMAGES_PER_FILE", 2)
    home, e = tmp_path / "home", load("random:0")
    for k in range(5): noise(tmp_path / f"{k}.png", k)
    (tmp_path / "c.json").write_text(json.dumps([pictured(k) for k in range(5)]))
    def opened(folder=tmp_path):
        return conversations._load_llava_json(tmp_path / "c.json", folder).corpus
    before, name = (features._cache_patch_tokens(e, opened(), home=home)[range(5)],
                    features._pictures_hash(opened()))
    files = {f: f.stat().st_mtime_ns for f in home.rglob("*.npy")}
    replaced(tmp_path / "3.png", "black")
    after = features._cache_patch_tokens(e, opened(), home=home)[range(5)]
    assert features._pictures_hash(opened()) != name
    assert (torch.equal(after[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
            and not torch.equal(after[3], before[3]))
    black = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    assert torch.allclose(after[3], features._tokens_of(e, black)[0].cpu(), atol=5e-3, rtol=1e-3)
    new = set(home.rglob("*.npy")) - set(files)
    # its part alone
    assert (len(files) == 3 and len(new) == 1
            and all(f.stat().st_mtime_ns == t for f, t in files.items()))
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("home"))
    assert features._pictures_hash(opened(tmp_path / "moved")) == features._pictures_hash(opened())

def test_a_picture_in_a_tar_is_known_by_its_content(tmp_path):
    import tarfile
    from ccd.data.shards import load_shards
    for k in range(2): noise(tmp_path / f"{k}.png", k); (tmp_path / f"{k}.txt").write_text("a cat")
    def packed(): # the name of what is in a tar that is always as long and as old
        with tarfile.open(tmp_path / "a.tar", "w") as t:
            for name in ("0.png", "0.txt", "1.png", "1.txt"): t.add(tmp_path / name, name)
        os.utime(tmp_path / "a.tar", (1, 1))
        return (features._pictures_hash(load_shards(tmp_path).corpus),
                (tmp_path / "a.tar").stat().st_size)
    name, size = packed()
    assert packed() == (name, size)
    replaced(tmp_path / "1.png", "black")
    other, same = packed()
    assert other != name and same == size

def test_pictures_that_change_meanwhile_are_not_kept(tmp_path, monkeypatch):
    for k in range(3): noise(tmp_path / f"{k}.png", k)
    (tmp_path / "c.json").write_text(json.dumps([pictured(k) for k in range(3)]))
    corpus, real = (conversations._load_llava_json(tmp_path / "c.json", tmp_path).corpus,
                    features._read)
    def read(*a):
        replaced(tmp_path / "1.png", "red")
        return real(*a)
    monkeypatch.setattr(features, "_read", read)
    with pytest.raises(UserError,
                       match="1 images have changed while they were encoded, such as number 1"):
        features._cache_patch_tokens(load("random:0"), corpus, home=tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*.npy"))
    monkeypatch.setattr(features, "_read", real)
    assert len(features._cache_patch_tokens(load("random:0"), corpus, home=tmp_path / "home")) == 3
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="1.png' cannot be read"):
        features._pictures_hash(corpus.select(range(3)))

def test_tokens_on_disk_are_those_of_the_encoder(home, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "_IMAGES_PER_FILE", 16)
    corpus, e = (scenes.scenes(WORLD, "train").select(range(40)),
                 load("random:0#layer=-2,final_norm=false"))
    shelf = features._cache_patch_tokens(e, corpus, home=tmp_path)
    images = torch.from_numpy(ImageDecoder(corpus, 48)[[0, 17, 39]])
    assert len(shelf) == 40 and len(shelf.parts) == 3
    assert torch.allclose(shelf[[0, 17, 39]], features._tokens_of(e, images), atol=5e-3, rtol=1e-3)
    file, *others = sorted(tmp_path.rglob("*.npy"))
    want, times = file.read_bytes(), [f.stat().st_mtime_ns for f in others]
    file.unlink() # as if it had been killed there
    again = features._cache_patch_tokens(e, corpus, home=tmp_path)
    assert len(others) == 2 and file.read_bytes() == want and torch.equal(again[[17]], shelf[[17]])
    assert [f.stat().st_mtime_ns for f in others] == times
    other = features._cache_patch_tokens(load("random:0#layer=-1,final_norm=false"), corpus,
                                         home=tmp_path)
    assert not torch.equal(other[[0]], shelf[[0]])

def test_tokens_are_resized_as_pictures_are(tmp_path):
    e = pixel_patches(48, 8)
    x = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    x[..., 24:] = 200 # right half
    t = features._tokens_of(e, x, 144)
    grid = t.view(12, 12, -1)
    want = F.interpolate(features._tokens_of(e, x).view(1, 6, 6, -1).permute(0, 3, 1, 2),
                         scale_factor=2, mode="bilinear")[0]
    assert torch.allclose(grid.permute(2, 0, 1), want, atol=1e-6) and grid[0, 0, 0] < grid[0, -1, 0]
    with pytest.raises(UserError, match="must be square"): features._tokens_of(e, x, 50)
    with pytest.raises(UserError, match="has no patch tokens, which"):
        features._tokens_of(load("pixels:16"), x[..., :16, :16])
    big = Encoder(EncoderCard("big", "", "", ""),
                  lambda x: Features(patches=x.new_full((len(x), 4, 2), 1e6)), taps=("patches",))
    with pytest.raises(UserError, match="float16 cannot hold"):
        features._cache_patch_tokens(big, scenes.scenes(WORLD, "train").select(range(2)),
                                     home=tmp_path)

# --- training

def weights(folder): 
    from safetensors.torch import load_file
    return load_file(folder / "tune" / "model.safetensors") | {f"p.{k}": x for k, x in
                                                               load_file(
                                                                   folder / "align" / "projector.safetensors").items()}  # noqa: E501

def test_stages_train_what_they_should(model, home):
    m = {k: json.loads((home / "model" / k / "manifest.json").read_text())
         for k in ("align", "tune")}
    projector = sum(p.numel() for p in model.net.model.multi_modal_projector.parameters())
    assert m["align"]["facts"]["trained"] == projector
    assert m["tune"]["facts"]["trained"] == sum(p.numel() for p in model.net.parameters())
    log = [json.loads(l)
           for l in (home / "model" / "tune" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 20 and log[-1]["loss"] < log[0]["loss"]

def die_at_step_14(out, home):
    steps = []
    def die(step, model):
        steps.append(step)
        if len(steps) == 14: os.kill(os.getpid(), 9)
    llava_training.train_vlm("random:0", SETTINGS,
                             *conversations._emoji_conversations(WORLD, SETTINGS), out, home,
                             on_step=die)

def test_a_stage_that_was_killed_ends_the_same(model, home, talks, tmp_path):
    said, code = finish(job(die_at_step_14, tmp_path / "killed", home))
    assert code == -9 and not (tmp_path / "killed" / "tune" / "manifest.json").exists()
    assert (tmp_path / "killed" / "align" / "manifest.json").exists(), said # it died in stage 2
    left = []
    llava_training.train_vlm("random:0", SETTINGS, *talks, tmp_path / "killed", home,
                             on_step=lambda k, m: left.append(k))
    assert left[0] in (4, 5) and left[-1] == 20 # at most the step it was in is lost
    a, b = weights(home / "model"), weights(tmp_path / "killed")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    def metrics(p):
        return (p / "tune" / "metrics.jsonl").read_text()
    assert metrics(home / "model") == metrics(tmp_path / "killed")

def test_parts_of_a_batch_train_as_the_batch_does(model, home, talks, monkeypatch):
    monkeypatch.setenv("CCD_PRECISION", "fp32")
    s, shelf = (conversations._tokenized(talks[1], model.tokenizer, "v1"),
                features._cache_patch_tokens(model.encoder, talks[1].corpus, home=home))
    def gradients(micro):
        m, stage = (llava_training.load_vlm(home / "model").requires_grad_(True),
                    llava_settings.Stage(320, 32))
        t = llava_training._VlmTrainer(m, llava_model._ConversationLoader(s, shelf, m, stage, 0),
                                       stage, RuntimeSettings(micro_batch=micro))
        loss, _ = t._gradients(t.feed(2), 0.0, 2)
        return loss, {k: p.grad for k, p in m.named_parameters()}
    (a, x), (b, y) = gradients(0), gradients(5)
    assert (a.item() == pytest.approx(b.item(), rel=1e-5)
            and all(torch.allclose(x[k], y[k], atol=1e-6) for k in x))
    assert all(g.abs().max() > 0 for g in x.values())

def test_two_processes_train_what_one_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_PRECISION", "fp32")
    arms = [("ddp", "whole"), ("fsdp", "whole"), ("fsdp", "lora")]
    for how in ("whole", "lora"): training(tmp_path / how, tmp_path / "home", adapt=how, micro=8)
    two(main, [(tmp_path / f"{s}-{how}", tmp_path / f"{s}-home", s, how) for s, how in arms])
    for s, how in arms:
        one, both = weights(tmp_path / how), weights(tmp_path / f"{s}-{how}")
        assert one.keys() == both.keys() and all(torch.allclose(one[k], both[k], atol=2e-4)
                                                 for k in one), (s, how)

def test_a_finished_model_is_not_trained_again_and_knows_its_encoder(model, home, talks, tmp_path):
    llava_training.train_vlm("random:0", SETTINGS, *talks, home / "model", home,
                             on_step=lambda *_: pytest.fail("trained again"))
    with pytest.raises(UserError, match="other settings"):
        llava_training.train_vlm("random:1", SETTINGS, *talks, home / "model", home)
    with pytest.raises(UserError,
                       match="was trained on random ViT, layer 3 of 4: give that encoder, not "
                             "random ViT, layer last"):
        llava_training.load_vlm(home / "model", load("random:0"))
    with pytest.raises(UserError, match="no finished"): llava_training.load_vlm(tmp_path)
    with pytest.raises(UserError, match="no language model '/.*Expected scratch, a folder"):
        llava_training.train_vlm("random:0", replace(SETTINGS, language=str(tmp_path)), *talks,
                                 tmp_path / "x", home)
    with pytest.raises(UserError, match="unknown preset"): llava_settings.vlm_preset("huge")

def test_a_language_model_from_a_folder(home, talks, asked, tmp_path):
    "Its head is its own, and its tokenizer knows no picture before."
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["where is the thing"] * 5, vocab_size=290,
                            special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, unk_token="<unk>", bos_token="<s>",
                            eos_token="</s>").save_pretrained(tmp_path / "l")
    LlamaForCausalLM(LlamaConfig(vocab_size=bpe.get_vocab_size(), hidden_size=32,
                                 intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=2,
                                 tie_word_embeddings=False)).save_pretrained(tmp_path / "l")
    few = replace(SETTINGS, language=str(tmp_path / "l"), context=400,
                  align=llava_settings.Stage(64, 32), tune=llava_settings.Stage(64, 32))
    out = llava_training.train_vlm("random:0", few, *talks, tmp_path / "m", home)
    m = llava_training.load_vlm(out)
    assert m.net.lm_head.weight.shape[0] == bpe.get_vocab_size() + 1 == len(m.tokenizer)
    assert ("lm_head.weight" in weights(out)
            and torch.equal(m.net.lm_head.weight, weights(out)["lm_head.weight"]))
    assert (set(answering.answer_questions(m, asked.select(range(4)), cache=home).prediction)
            <= set("ABCD"))

@pytest.mark.parametrize("how", ["lora", "frozen"])
def test_what_trains_of_a_language_model_is_what_was_said(home, talks, tmp_path, how):
    few = replace(SETTINGS, adapt=how, rank=3,
                  tune=llava_settings.Stage(160, 32, 1e-2, projector_lr=1e-3))
    seen = {}
    def look(step, m):
        if step == few.tune.steps:
            seen.update(net=m.net,
                        trained={k for k, p in m.net.named_parameters() if p.requires_grad})
    out = llava_training.train_vlm("random:0", few, None, talks[1], tmp_path / "m", home,
                                   on_step=look)
    assert (not (out / "align").exists()
            and all("multi_modal_projector" in k or "lora_" in k for k in seen["trained"]))
    ours, first = (llava_training.load_vlm(out),
                   llava_training._load_language_model(few, None, talks[1], home)[0])
    now, before = ours.net.model.language_model.state_dict(), first.model.state_dict()
    assert now.keys() == before.keys()
    ranks = {k: int(torch.linalg.matrix_rank((now[k] - before[k]).double(), rtol=1e-4))
             for k in now if now[k].ndim == 2}
    adapted = {k for k, r in ranks.items() if r}
    assert (adapted == ({k for k in ranks if "embed" not in k} if how == "lora" else set())
            and max(ranks.values()) <= 3)
    assert all(torch.equal(now[k], before[k]) for k in now.keys() - adapted)
    ids = torch.from_numpy(conversations._tokenized(talks[1], ours.tokenizer, "v1",
                                                    pictures=False).ids[:40]).long()[None]
    seen["net"].eval()
    with torch.no_grad(): a, b = (n(input_ids=ids).logits for n in (ours.net, seen["net"]))
    assert torch.allclose(a, b, atol=1e-4) # adapters are in the weights that were kept

def test_the_projector_has_its_own_rate(model, home, talks):
    stage = llava_settings.Stage(320, 32, 1e-2, projector_lr=1e-3)
    s, shelf = (conversations._tokenized(talks[1], model.tokenizer, "v1"),
                features._cache_patch_tokens(model.encoder, talks[1].corpus, home=home))
    m = llava_training.load_vlm(home / "model").requires_grad_(True)
    t = llava_training._VlmTrainer(m, llava_model._ConversationLoader(s, shelf, m, stage, 0), stage,
                                   RuntimeSettings())
    t.step(5, t.feed(5))
    rate = {id(p): g["lr"] for g in t.optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(m.parameters()))
    for k, p in m.named_parameters():
        assert rate[id(p)] == pytest.approx(learning_rate(0.5, stage)
                                            * (0.1 if "multi_modal_projector" in k else 1)), k

# --- answering

def plain_loop(model, row, image, how):
    "One option after the other, as one would write it down."
    ask, said = conversations._ANSWER_FORMATS[how]
    out = []
    for l in "ABCD":
        talk = conversations._Conversations(None,
                                            [[(ask(row, model.settings),
                                               said(row | dict(answer=l)))]], np.array([0]))
        s = conversations._tokenized(talk, model.tokenizer, "v1", model.settings.system)
        ids, learnt, _ = llava_model._pad_sample(s, 0, model.image, model.tokens, 999)
        ids = torch.from_numpy(ids).long()[None]
        tokens = features._tokens_of(model.encoder,
                                     torch.from_numpy(ImageDecoder(image, 48)[[0]])).half().float()
        with torch.no_grad():
            logp = model.net(input_ids=ids, pixel_values=tokens).logits[0].log_softmax(-1)
        each = [logp[k - 1, ids[0, k]].item() for k in np.flatnonzero(learnt)]
        out.append(each)
    return out

@pytest.mark.parametrize("how", ["texts", "letters"])
def test_options_side_by_side_are_options_alone(model, asked, home, how):
    few = asked.select([0, 13, 30])
    got = answering.answer_questions(model, few, how, cache=home)
    for k, row in enumerate(few.remove_columns("image").to_list()):
        each = plain_loop(model, row, few.select([k]), how)
        x = np.array([np.mean(e) if how == "texts" else sum(e[:-1]) for e in each])
        p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        assert np.allclose(got.p_options[k], p, atol=1e-5)
        assert got.prediction[k] == "ABCD"[p.argmax()]
    total = answering.answer_questions(model, few, "texts", mean=False, cache=home)
    if how == "texts":
        x = np.array([sum(e) for e in each])
        assert np.allclose(np.log(total.p_options[2]), x - np.logaddexp.reduce(x), atol=1e-4)

def test_a_benchmark_is_asked_in_its_own_form(model, asked, home, monkeypatch):
    from ccd.vqa.benchmarks.suite import BENCHMARKS, _prompt
    few, texts, real = asked.select([0, 13]), [], conversations._tokenized
    monkeypatch.setattr(answering, "_tokenized",
                        lambda talks, *a, **k: texts.extend(t[0] for t in talks.turns)
                        or real(talks, *a, **k))
    def of(benchmark, **how):
        texts.clear()
        t = answering.answer_questions(model, few, benchmark=benchmark, cache=home, image="none",
                                       **how)
        return (np.stack(t.p_options), list(dict.fromkeys(q for q, _ in texts)),
                [a for _, a in texts])
    rows = few.remove_columns("image").to_list()
    for name in ("VMCBench", "MMBench", "AI2D", "ScienceQA_I", "CVBench_2D"):
        p, questions, said = of(name)
        assert questions == [_prompt(r, name).strip() for r in rows] and said == list("ABCD") * 2
        assert BENCHMARKS[name].form == "letters"
    for r, q in zip(rows, of("VMCBench")[1]):
        options = "".join(f"{l}. {r[l]}\n" for l in "ABCD")
        assert q == f"Question: {r['question']}\nOptions:\n{options}Answer with the option's letter from the given choices directly."  # noqa: E501
    own, letters = of("EmojiVMC"), of("VMCBench")
    # as before
    assert (own[1] == [r["question"] for r in rows]
            and own[2] == [r[l] for r in rows for l in "ABCD"])
    for x, y in ((of("VMCBench", form="texts"), own), (of("EmojiVMC", form="letters"), letters)):
        assert x[1:] == y[1:] and np.array_equal(x[0], y[0])

@pytest.mark.parametrize("preset", llava_settings.VLM_PRESETS)
def test_the_form_of_every_benchmark(preset):
    from ccd.vqa.benchmarks.suite import BENCHMARKS
    settings = llava_settings.vlm_preset(preset)
    for name, b in BENCHMARKS.items():
        assert conversations._form_of(name, settings) == b.form
        assert conversations._form_of(name, settings, "texts") == "texts"
    assert conversations._form_of("EmojiVMC", settings) == "texts"
    with pytest.raises(UserError,
                       match="unknown form 'rhymes' of a question: expected one of texts, letters"):
        conversations._form_of("VMCBench", settings, "rhymes")

def test_an_image_becomes_a_square_as_the_settings_say():
    def fitted(spec, **of):
        return load(features._spec_with_layer(spec, replace(SETTINGS, **of))).card.resize
    # as ever
    assert features._spec_with_layer("random:0", SETTINGS) == "random:0#layer=-2,final_norm=false"
    assert features._spec_with_layer("random:0",
                                     llava_settings.vlm_preset("llava-1.5")).endswith(",resize=pad")
    assert fitted("random:0") == fitted("random:0", fit="crop") == load("random:0").card.resize
    assert fitted("random:0", fit="pad").startswith("padded to a square with (127, 127, 127)")
    # its name says otherwise
    assert fitted("random:0#resize=squash", fit="pad") == "both sides to 48 px, bicubic"
    assert ("fit" not in to_plain_dict(SETTINGS)
            and to_plain_dict(llava_settings.vlm_preset("llava-1.5"))["fit"] == "pad")
    with pytest.raises(UserError,
                       match="cannot become a square by 'stretch': expected one of crop, "
                             "squash, pad"):
        replace(SETTINGS, fit="stretch")

def test_answers_are_the_contract_and_do_not_depend_on_the_batch(model, asked, home, tmp_path):
    a = answering.answer_questions(model, asked, cache=home, encoder="one")
    b = answering.answer_questions(model, asked, cache=home, encoder="one", batch_size=5,
                                   folder=tmp_path)
    _check_answers(a)
    assert ((a.prediction == b.prediction).all()
            and np.allclose(list(a.p_options), list(b.p_options), atol=1e-5))
    assert set(a.encoder) == {"one"} and a.score.isin([0, 1]).all()
    # read back
    c = answering.answer_questions(model, asked, cache=home, encoder="one", folder=tmp_path)
    assert list(c.p_options) == list(b.p_options)

def test_rotations_are_the_mean_over_rotated_questions(model, asked, home):
    few = asked.select(range(6))
    got = answering.answer_questions(model, few, "letters", rotations=True, cache=home)
    total = np.zeros((6, 4))
    for r in range(4):
        turned = few.map(lambda row: answering._rotate_options({k: x for k, x in row.items()
                                                                if k != "image"}, r))
        p = answering.answer_questions(model, turned, "letters", cache=home).p_options
        for k in range(6):
            for j in range(4): total[k, (j + r) % 4] += p[k][j] / 4
    assert np.allclose(np.stack(got.p_options), total, atol=1e-5)
    with pytest.raises(UserError, match="no options to rotate"):
        answering.answer_questions(model, few, "texts", rotations=True, cache=home)

def test_blind_is_blind(model, asked, home):
    "Without the picture nothing depends on it; another picture is another's."
    pictures = list(asked["image"])
    def show(places):
        return asked.map(lambda r, k: dict(image=pictures[places[k]]), with_indices=True)
    swapped = show(range(len(asked) - 1, -1, -1))
    def p(q, image):
        return np.stack(answering.answer_questions(model, q, image=image, cache=home).p_options)
    assert np.array_equal(p(asked, "none"), p(swapped, "none"))
    assert not np.allclose(p(asked, "own"), p(swapped, "own"))
    at = answering._mismatched_images(asked["item_id"], asked["category"]).tolist()
    assert np.allclose(p(asked, "other"), p(show(at), "own"), atol=1e-4)

def test_each_question_gets_the_picture_of_another_of_its_subset():
    items = list("aabbccddxyxyz"); subsets = ["s"] * 8 + ["t"] * 5
    at = answering._mismatched_images(items, subsets)
    assert all(items[k] != items[j] and subsets[k] == subsets[j] for k, j in enumerate(at))
    assert ({items[j] for j in at} == set(items)
            and (at == answering._mismatched_images(items, subsets)).all())
    with pytest.raises(UserError, match="about one image"):
        answering._mismatched_images(["a", "a"], ["s", "s"])

def test_what_cannot_be_answered_is_said(model, asked, home, capsys):
    few = asked.select(range(3))
    long = few.map(lambda r, k: dict(question="why " * 300 if k == 1 else r["question"]),
                   with_indices=True)
    t = answering.answer_questions(model, long, cache=home)
    assert (t.prediction[1] == "" and t.score[1] == 0 and t.p_options[1] is None
            and t.prediction[0] in "ABCD")
    assert "1 of 3 questions are longer than 256 tokens: not answered" in capsys.readouterr().err
    free = few.map(lambda r: dict.fromkeys("ABCD", ""))
    with pytest.raises(UserError, match="3 questions have no options"):
        answering.answer_questions(model, free, cache=home)
    with pytest.raises(UserError, match="unknown form 'rhymes'"):
        answering.answer_questions(model, few, "rhymes", cache=home)
    with pytest.raises(UserError, match="unknown image"):
        answering.answer_questions(model, few, image="blank", cache=home)

def test_a_loaded_model_answers_and_keeps_its_floors(home, asked, model):
    t = answering.evaluate(home / "model", asked.select(range(18)), "random", cache=home)
    assert list(t.encoder.unique()) == ["random", "random, no picture", "random, another picture"]
    import pandas as pd
    back = pd.read_parquet(home / "model" / "answers.parquet")
    assert len(back) == 54 and (back.prediction == t.prediction).all()
