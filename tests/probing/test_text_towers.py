"A text tower is asked about what captions have named, in images that no encoder was trained on."
import numpy as np, pandas as pd, pytest
from ccd.data.corpora import open_corpus
from ccd.data.emoji.lettering import reading_words
from ccd.encoders.embeddings import Embeddings
from ccd.presets import preset
from ccd.probing import captions
from ccd.settings import override

@pytest.fixture(scope="module", params=["emoji", "emoji-2"])
def images(request):
    settings = override(preset("smoke"), **{"data.source": request.param, "data.scenes": 2_000})
    return settings, captions._named_images(settings)

def test_what_is_asked_was_named_by_captions_and_is_in_no_training_image(images):
    settings, named = images
    training = open_corpus(settings.data).corpus
    seen = set(training["pixel_hash"][:])
    assert all(len(corpus) and not seen & set(corpus["pixel_hash"][:]) for corpus in named.values())
    families = set(filter(None, training["family"][:]))
    assert set(filter(None, named["scenes"]["family"][:])) & families
    assert set(named["emoji"]["style"][:]) == {settings.data.held_out_style}
    assert settings.data.held_out_style not in set(training["style"][:])
    assert set(named["emoji"]["split"][:]) == {"train"} # of families
    assert not set(named["signs"]["font"][:]) & set(training["font"][:])
    if settings.data.version == 2:
        assert set(named["signs"]["word"][:]) <= set(reading_words()[0])

def test_a_perfect_text_tower_finds_everything_and_a_random_one_nothing(images):
    "Vectors that are the names themselves are the ceiling of the measure."
    settings, named = images
    names = {}
    def code(text): # one direction for each name or word
        seed = names.setdefault(text, len(names))
        return np.random.default_rng(seed).normal(size=64)
    labels = dict(scenes=[c[0] for c in named["scenes"]["captions"][:]],
                  emoji=named["emoji"]["name"][:], signs=named["signs"]["word"][:])
    def embedded(of):
        return {kind: Embeddings(np.array([of(label) for label in labels[kind]], np.float32),
                                 pd.DataFrame({c: named[kind][c][:] for c in
                                               ("item_id", "family", "name", "word")}), {})
                for kind in named}
    own = {caption: labels["scenes"][row] for row, all_of in
           enumerate(named["scenes"]["captions"][:]) for caption in all_of}
    def spoken(meant): # a text tower that knows what a text means
        import torch
        return lambda texts: torch.tensor(np.array([code(meant(text)) for text in texts]),
                                          dtype=torch.float32)
    def named_in(text): # a word in quotes, or the longest name in a sentence
        return (text.split('"')[1] if '"' in text else
                max((name for name in labels["emoji"] if name in text), key=len))
    def found(vectors):
        rows = captions._language_metrics(np.asarray, spoken(lambda text: own[text]),
                                          dict(scenes=vectors["scenes"]), named["scenes"], 20)
        rows += captions._language_metrics(np.asarray, spoken(lambda text: own.get(text, "")
                                           if '"' not in text and text in own else
                                           named_in(text)), vectors, named["scenes"], 20)[2:]
        return {row["metric"]: row["estimate"] for row in rows}
    best = found(embedded(code))
    assert set(best) == {"image to text", "text to image", "word", "name"}
    assert min(best.values()) > 0.9
    rng = np.random.default_rng(0)
    assert max(found(embedded(lambda _: rng.normal(size=64))).values()) < 0.2
