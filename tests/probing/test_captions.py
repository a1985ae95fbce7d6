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
    def speak(texts):
        import torch
        def meant(text): # a caption, a word in quotes, or the longest name in a sentence
            return (own.get(text) or text.split('"')[1] if '"' in text or text in own
                    else max((name for name in labels["emoji"] if name in text), key=len))
        return torch.tensor(np.array([code(meant(text)) for text in texts]), dtype=torch.float32)
    rows = captions._language_metrics(np.asarray, speak, embedded(code), named["scenes"], 20)
    found = {row["metric"]: row["estimate"] for row in rows}
    assert found["word"] > 0.95 and found["image to text"] > 0.9 and found["text to image"] > 0.9
    rng = np.random.default_rng(0)
    rows = captions._language_metrics(np.asarray, speak, embedded(lambda _: rng.normal(size=64)),
                                      named["scenes"], 20)
    assert all(row["estimate"] < 0.2 for row in rows)
