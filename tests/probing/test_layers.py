"""Probes of every block: the features of a block are those that its own name gives, an attentive
probe reads what one token holds, and each misuse has its own message."""
import numpy as np, pandas as pd, pytest
from ccd.cli import main
from ccd.encoders.inputs import embed_images, load_encoder
from ccd.encoders.loading import load
from ccd.files import UserError, load_table
from ccd.presets import preset
from ccd.probing.layers import blocks
from ccd.probing.layers.attentive import _AttentiveHead, attentive_probe
from ccd.settings import override
import torch

SMOKE = override(preset("smoke"), **{"analysis.n_resamples": 50})

def pixels(size=48):
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize("spec", ["random:0", "ccd:emoji/dino", "first:ccd:emoji/dino"])
def test_each_block_is_the_feature_of_its_own_name(spec):
    every = load_encoder(f"{spec}#feature=layers", SMOKE)
    size = every.card.size
    found = every.vector(pixels(size))
    width = load_encoder(spec, SMOKE).vector(pixels(size)).shape[1]
    depth = found.shape[1] // (2 * width)
    for block in range(1, depth + 1):
        for place, feature in enumerate(("cls", "pooled")):
            own = load_encoder(f"{spec}#feature={feature},layer={block}", SMOKE)
            at = (2 * (block - 1) + place) * width
            assert torch.allclose(found[:, at:at + width], own.vector(pixels(size)), atol=1e-5)
    assert every.card.layer == f"1 to {depth} of {depth}"

def test_patches_as_a_vector_are_the_patches():
    encoder = load("random:0#feature=patches", SMOKE.control)
    assert torch.equal(encoder.vector(pixels()), encoder.features(pixels()).patches.flatten(1))

@pytest.mark.parametrize("spec, said", [
    ("hog:8", "takes size= and no other option"),
    ("ccd:emoji/dino + ccd:emoji/clip", "name each of them alone"),
    ("random:0#n_last_blocks=2", "feature")])
def test_what_has_no_blocks_to_read(spec, said, tmp_path):
    if "n_last" in spec: # nothing is joined twice
        assert load(f"{spec},feature=layers", SMOKE.control).card.tap == "layers"
        return
    with pytest.raises(UserError, match=said):
        blocks.probe_layers([spec], ["emoji"], SMOKE, tmp_path / "out")

def test_an_unknown_task_is_told(tmp_path):
    with pytest.raises(UserError, match="unknown task 'colour'.*expected one of category"):
        blocks.probe_layers(["random:0"], ["emoji"], SMOKE, tmp_path, ("colour",))

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    home = tmp_path_factory.mktemp("layers")
    main(["layers", "ccd:emoji/dino", "--preset", "smoke", "--tasks", "style", "--out",
          str(home / "out"), "--save-tables", str(home / "copy")])
    return home

def test_the_command_probes_every_block(done):
    table = load_table(done / "out/tables/layers.csv")
    assert set(table.encoder) == {"DINO", "random ViT"} and set(table.task) == {"style"}
    assert table.groupby(["encoder", "task"]).size().eq(4 * 3).all() # four blocks, three readings
    assert table.accuracy.between(table.ci_low - 1e-9, table.ci_high + 1e-9).all()
    assert (done / "copy/layers.csv").exists() and (done / "out/report.html").exists()
    assert not list((done / "out/vectors").glob("*/patches")) # tokens are deleted

def test_the_last_class_token_is_probed_as_by_ccd_probe(done):
    from ccd.probing.tables import predict_probes, score_probes
    from ccd.probing.tasks import tasks
    vectors = {key: embed_images("ccd:emoji/dino", key, SMOKE, done / key)
               for key in ("gallery", "signs")}
    asked = [task for task in tasks("emoji", {key: own.items for key, own in vectors.items()})
             if task.name == "style"]
    plain = score_probes(*predict_probes(vectors, asked), asked, 50).linear.iloc[0]
    table = load_table(done / "out/tables/layers.csv")
    row = table[(table.encoder == "DINO") & (table.task == "style") & (table.block == 4)
                & (table.token == "class token")]
    assert abs(row.accuracy.iloc[0] - plain) < 0.03 # half precision of other products

def test_the_best_place_is_said():
    rows = [("a", "word", block, token, value) for block, token, value in (
        (1, "class token", .1), (1, "patches, attentive", .9), (2, "class token", .3),
        (2, "patches, attentive", .5))]
    table = pd.DataFrame(rows, columns=["encoder", "task", "block", "token", "accuracy"])
    assert blocks._best_of(table, "a") == (
        "a on word: best from the patches, attentive of block 1 (90.0 %); the class token of the "
        "last block gives 30.0 %.")

def test_attention_without_information_is_at_chance():
    rng, rows = np.random.default_rng(0), np.arange(900)
    labels, tokens = rng.integers(0, 3, 900), rng.normal(size=(900, 60)).astype(np.float32)
    said = attentive_probe(tokens, labels, rows[:500], rows[500:600], 6)(tokens, rows[600:])
    assert abs((said == labels[600:]).mean() - 1 / 3) < 0.1

def test_the_test_rows_play_no_part():
    rng, rows = np.random.default_rng(0), np.arange(300)
    labels, tokens = rng.integers(0, 3, 300), rng.normal(size=(300, 60)).astype(np.float32)
    other = np.where(rows >= 250, 7, labels)
    said = [attentive_probe(tokens, own, rows[:200], rows[200:250], 6)(tokens, rows[250:])
            for own in (labels, other)]
    assert (said[0] == said[1]).all()

def test_tokens_that_do_not_divide_the_vectors():
    with pytest.raises(UserError, match="are not 7 tokens"):
        attentive_probe(np.zeros((4, 60), np.float32), np.zeros(4), [0, 1], [2], 7)

def test_the_head_is_attention_without_projections():
    mean, std = torch.zeros(16), torch.ones(16)
    head, tokens = _AttentiveHead(mean, std, 3), torch.randn(2, 5, 16)
    queries = head.queries[None].expand(2, -1, -1)
    found = torch.nn.functional.scaled_dot_product_attention(queries, tokens, tokens)
    assert torch.allclose(head(tokens), head.classify(found.flatten(1)), atol=1e-5)
