"""Imports of version 0.0.1, before the library had folders, work for one more release, with a
warning that says where to go."""
import ast, importlib, warnings
import pytest
import ccd
from ccd.moved import moved

OLD = """
from ccd import emoji, figures, sources
from ccd.audit import audit
from ccd.core import Control, UserError, World, device, override, preset, read_json
from ccd.embeddings import embed, load_embeddings, load_vectors
from ccd.emoji import attribution, scenes
from ccd.encoders import Anatomy, Card, Fit, encoder_of, load
from ccd.objectives import OBJECTIVES, ClipObjective, DinoObjective, Objective, build
from ccd.pairs import mine
from ccd.sources import Feed, Shown, folder, open_corpus, tar_members
from ccd.towers import weights_hash
from ccd.training import Trainer, flops_per_sample, hunger, metrics, on_device, train
from ccd.views import dino_view
from ccd.vqa import answer_table, compare, conventions, load_questions, maps_of
""" # what the README and the guides imported

IMPORTS = [(n.module, a.name) for n in ast.parse(OLD).body for a in n.names if n.module != "ccd"]

@pytest.mark.parametrize("module, name", IMPORTS)
def test_an_old_import_finds_what_has_moved(module, name):
    with pytest.warns(FutureWarning, match=f"{module}.{name} is ccd") as said:
        found = getattr(importlib.import_module(module), name)
    where, _, now = str(said[0].message).split(" is ")[1].split(" now")[0].rpartition(".")
    assert found is vars(importlib.import_module(where))[now]

def test_an_old_module_comes_from_the_package_too():
    from ccd import emoji, figures, sources
    with pytest.warns(FutureWarning):
        assert figures.plt.__name__ == "styled_pyplot" and emoji.scenes and sources.Feed

@pytest.mark.parametrize("old", moved())
def test_every_old_module_is_there_and_knows_what_it_lacks(old):
    module = importlib.import_module(f"ccd.{old}")
    with pytest.raises(AttributeError, match="was cut into"): module.nothing_like_this

@pytest.mark.parametrize("old", moved())
def test_all_of_an_old_module_is_found(old):
    module = importlib.import_module(f"ccd.{old}")
    for name, (where, now) in moved()[old].items():
        with pytest.warns(FutureWarning, match=rf"ccd\.{where}\.{now} now"):
            assert getattr(module, name) is vars(importlib.import_module(f"ccd.{where}"))[now]

def test_new_imports_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        from ccd.comparison.search import mine_pairs
        from ccd.training.loop import train
    assert mine_pairs and train and not hasattr(ccd, "never_was")
