"""One language model around each encoder: what the ceiling is taught, and the command from end to
end."""
import base64, io, json, re, shutil
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from ccd.data.emoji import materials, questions as emoji_questions
from ccd.vqa import ceiling, command
from ccd.cli import main
from ccd.files import UserError
from ccd.settings import override
from ccd.presets import preset
from ccd.runs import read_manifest, write_manifest
from ccd.data.emoji.drawings import drawings
from ccd.data.emoji.lettering import words
from ccd.vqa.llava.settings import apply_overrides, vlm_preset
from ccd.vqa.llava.conversations import _Conversations
from ccd.vqa.llava.answering import CONDITION_SUFFIXES
from ccd.vqa.statistics.answers import answer_table
from ccd.vqa.statistics.aggregation import _simulate_answers
from conftest import FEW
from schemas import RESULTS, differences

WORLD = preset("smoke").data
VERSION_2 = preset("controlled").data
FACTORS = list(ceiling._patch_label_sizes())

def told(subset, index=0, side=6, split="train", data=WORLD):
    image, row = emoji_questions.question(data, subset, index, split)
    facts = json.loads(row["facts"])
    labels = ceiling._patch_labels(facts, data.size, side, data.version)
    return dict(zip(FACTORS, labels)), facts, row

# --- what lies under each patch

@pytest.mark.parametrize("data", [WORLD, VERSION_2], ids=["version 1", "version 2"])
def test_every_number_is_below_its_classes(data):
    sizes = ceiling._patch_label_sizes(data.version)
    for subset in materials.SUBSETS:
        under = told(subset, 1, split="test", data=data)[0]
        for f, x in under.items(): assert -100 <= x.min() and x.max() < sizes[f], (subset, f)

def test_a_thing_lies_where_its_box_is_and_nowhere_else():
    under, facts, _ = told("relation", 2, side=64) # a patch a pixel
    seen = np.zeros((64, 64), bool)
    for row, (x0, y0, x1, y1) in facts["things"]:
        concepts = under["concept"][y0:y1, x0:x1]
        assert concepts.min() == concepts.max() > 0
        seen[y0:y1, x0:x1] = True
    assert (under["concept"][~seen] == 0).all() and (under["word"] == 0).all()

def test_two_things_have_one_number_just_if_they_are_of_one_concept():
    t, number = drawings()[0], {}
    for subset in ("place", "odd thing", "category"):
        for i in range(12):
            under, facts, _ = told(subset, i, side=64)
            for row, (x0, y0, x1, y1) in facts["things"]:
                number.setdefault(t.concept[row],
                                  set()).add(int(under["concept"][(y0 + y1) // 2, (x0 + x1) // 2]))
    assert all(len(n) == 1 for n in number.values())
    assert len(set.union(*number.values())) == len(number) > 12

def test_a_concept_that_training_holds_out_has_no_number():
    under, facts, _ = told("count", 3, side=64, split="test")
    (x0, y0, x1, y1) = facts["things"][0][1]
    assert under["concept"][y0, x0] == -100 and under["category"][y0, x0] > 0

@pytest.mark.parametrize("i", range(6))
def test_letters_spell_the_word(i):
    under, facts, _ = told("font", i, side=32) # patches of two pixels: no letter falls between
    (text, box), = facts["written"]
    line = under["left"][round((box[1] + box[3]) / 4)]
    spelt = [ceiling._LETTERS[k - 1] for k in line if k > 0]
    once = [c for k, c in enumerate(spelt) if k == 0 or c != spelt[k - 1]]
    assert "".join(once) == "".join(c for k, c in enumerate(text) if k == 0 or c != text[k - 1])
    assert set(under["word"][under["word"] != 0]) == {1 + words()[0].index(text)}

def test_bars_and_numbers_are_counted():
    under, facts, _ = told("largest bar", 4, side=64)
    for n, (x0, y0, x1, y1) in facts["bars"]: assert under["number"][(y0 + y1) // 2, x1 - 1] == n
    under, facts, _ = told("value", 4, side=64)
    for text, (x0, y0, x1, y1) in facts["written"]:
        if text.isdigit(): assert under["number"][(y0 + y1) // 2, (x0 + x1) // 2] == int(text)

# --- the objective

def test_the_loss_weighs_what_lies_somewhere_as_much_as_that_nothing_does():
    m = ceiling._PatchLabelObjective(preset("smoke"))
    g, sizes = torch.Generator().manual_seed(0), list(m.sizes.values())
    logits = torch.randn(3, 16, sum(sizes), generator=g)
    label = torch.stack([torch.randint(0, min(n, 4), (3, 16), generator=g) for n in sizes], 1)
    label[0, :, :5] = -100
    label[:, 2] = 0 # a factor of which nothing is there
    got, right = m.loss(dict(logits=logits, label=label), 0.5)
    want = 0
    for k, x in enumerate(logits.split(sizes, -1)):
        parts = dict(some=[], none=[])
        for b in range(3):
            for n in range(16):
                y = int(label[b, k, n])
                if y >= 0:
                    parts["some" if y else "none"].append(float(-F.log_softmax(x[b, n], 0)[y]))
        want += sum(np.mean(p) for p in parts.values() if p)
    assert float(got) == pytest.approx(want, rel=1e-5)
    assert right["category"] == 0 and set(right) == set(m.sizes)

def test_a_ceiling_is_taught_and_loads_as_any_encoder(tmp_path):
    from ccd.encoders.loading import load
    s = override(preset("smoke"), **{"control.lr": 5e-3})
    run = ceiling.train_oracle(s, tmp_path / "run")
    lines = [json.loads(l) for l in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [l["loss"] for l in lines if "loss" in l]
    assert losses[-1] < 0.8 * losses[0]
    e = load(f"ccd:{run}")
    assert e.card.name == ceiling.ORACLE and "patches" in e.taps
    corpus = ceiling._oracle_dataset(s, 20)
    assert (len(corpus["factors"][0])
            == len(FACTORS) * (s.control.vit.image_size // s.control.vit.patch_size) ** 2)

# --- the tables

def test_what_is_not_informative_leaves_every_average():
    sees = {"A": 0.6, "B": 0.4,
            ceiling.ORACLE: {s: 0.3 if s in ("rows", "thing") else 0.9 for s in materials.SUBSETS}}
    right = sees | {n + CONDITION_SUFFIXES[f]: 0.25 for n in sees for f in ("none", "other")}
    t = command._result_tables(_simulate_answers(dict.fromkeys(materials.SUBSETS, 60), right),
                               list(sees), materials.CATEGORIES, n_resamples=200)
    mean = t["summary"].query("encoder == 'A' and level == 'category' and average == "
                              "'macro'").set_index("name")
    alone = t["summary"].query("encoder == 'A' and level == 'subset'").set_index("name").score
    for c, leaves in materials.CATEGORIES.items():
        assert (mean.score[c]
                == pytest.approx(alone[[s for s in leaves if s not in ("rows", "thing")]].mean()))
    assert set(t["differences"].a) | set(t["differences"].b) == {"A", "B"} # the ceiling is no rival
    assert set(t["floors"].a) == set(sees)

def test_without_a_ceiling_nothing_is_left_out():
    right = {n + f: 0.4 for n in ("A", "B") for f in CONDITION_SUFFIXES.values()}
    t = command._result_tables(_simulate_answers(dict.fromkeys(materials.SUBSETS, 20), right),
                               ["A", "B"], materials.CATEGORIES, n_resamples=50)
    assert "informative" not in t and not t["summary"].excluded.any()

SMALL = dict(list(materials.CATEGORIES.items())[:2]) # two categories are enough

def answered(right, runs): # of two encoders and of the same models without the image and with another  # noqa: E501
    parts = [_simulate_answers({s: 60 for c in SMALL.values() for s in c},
                               {e + f: right[e] if f == "" else 0.25 for e in right
                                for f in CONDITION_SUFFIXES.values()},
                          seed=7 * k).assign(seed=k) for k in range(max(runs.values()))]
    a = pd.concat(parts, ignore_index=True)
    return a[[k < runs[e.partition(",")[0]] for e, k in zip(a.encoder, a.seed)]]

def test_of_two_encoders_at_their_baseline_one_sentence_says_that_there_is_no_verdict():
    t = command._result_tables(answered(dict(A=0.25, B=0.26), dict(A=1, B=1)), ["A", "B"], SMALL,
                               n_resamples=100)
    assert (t["differences"].query("average == 'macro'").above_baseline == "neither").all()
    assert (command.summary_text(t["differences"], "A", "B")
            == "No verdict: neither A nor B is above its own no-image baseline in any category.")
    assert command.over_runs(t["differences"]).startswith("Every encoder was trained once")

def test_a_verdict_is_given_where_one_is_above_its_baseline_and_a_star_only_where_both_have_several_runs():  # noqa: E501
    from ccd.report.questions import vqa_difference_table
    first = list(SMALL)[0]
    right = {"A": {s: 0.8 if c == first else 0.25 for c, ss in SMALL.items() for s in ss},
             "B": 0.25}
    for runs, star in ((dict(A=3, B=3), True), (dict(A=3, B=1), False), (dict(A=1, B=1), False)):
        t = command._result_tables(answered(right, runs), ["A", "B"], SMALL,
                                   n_resamples=100)["differences"]
        said = command.summary_text(t, "A", "B")
        assert said.startswith(f"{first}: A leads by") and f"No verdict on {list(SMALL)[1]}" in said
        assert vqa_difference_table(t, SMALL).loc[first, "A − B"].endswith("*") == star
        assert (("B was trained once" in said) == (runs == dict(A=3, B=1))
                and ("these two checkpoints" in said) == (runs == dict(A=1, B=1)))

# --- the command

def test_the_command_from_end_to_end(tmp_path, capsys, monkeypatch):
    out, results = tmp_path / "out", tmp_path / "results"
    said = ["vlm", "random:0", "pixels:16", "--preset", "smoke", "--analysis.vqa_questions", "4",
            "--out", str(out), "--save-tables", str(results),
            "--override", *FEW]
    main(said)
    assert "report.html" in capsys.readouterr().out
    m = read_manifest(results)
    assert ({"summary.csv", "differences.csv", "floors.csv", "answers.parquet", "encoders.csv"}
            <= set(m["outputs"]))
    a = pd.read_parquet(results / "answers.parquet")
    assert (set(a.encoder)
            == {n + f for n in ("random ViT", "raw pixels") for f in CONDITION_SUFFIXES.values()})
    assert a.groupby("encoder").size().eq(4 * len(materials.SUBSETS)).all()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    main(said) # all is there
    assert (before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
            and "working" not in capsys.readouterr().err)
    monkeypatch.setattr(command, "train_vlm", lambda *_: pytest.fail("it was trained again"))
    # what has answered before is not asked again
    main([x if x != str(out) else str(tmp_path / "elsewhere") for x in said])
    assert ({k: x["sha256"] for k, x in read_manifest(results)["outputs"].items()}
            == {k: x["sha256"] for k, x in m["outputs"].items()})
    with pytest.raises(pytest.fail.Exception):
        main([*said[:-len(FEW)], *FEW[:-1], "tune.samples=96", "--out", str(tmp_path / "third")])
    page = (out / "EmojiVMC/report.html").read_text()
    tables = re.sub(r'<img[^>]*>', '', page)
    assert ("random ViT" in page and "<img alt=" in page
            and not re.search(r"[+>(]nan", tables.lower()))

def vmcbench(file, answers="AB"): # its TSV
    image = base64.b64encode(png(8)).decode()
    rows = [dict(index=k, image=image, question="Which of these is red?", A="blood", B=f"grass {k}",
                 C="sky", D="snow", answer=a, category="GQA")
            for k, a in enumerate(answers)]
    pd.DataFrame(rows).to_csv(file, sep="\t", index=False)

def png(k):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(0, 255, (9, 9, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()

@pytest.mark.parametrize("options, form", [([], "letters"), (["--form", "texts"], "texts")])
def test_the_command_asks_a_benchmark_in_its_form(options, form, tmp_path, monkeypatch, capsys):
    vmcbench(tmp_path / "VMCBench_DEV.tsv")
    def train(e, v, captions, questions, home): write_manifest(home / "tune", {}, {}, [], 0)
    def evaluate(home, questions, encoder, benchmark, form):
        seen.append(form)
        return pd.concat([answer_table(benchmark, questions, {0: "A", 1: "C"},
                                       encoder.card.name + f) for f in CONDITION_SUFFIXES.values()],
                         ignore_index=True)
    monkeypatch.setattr(command, "train_vlm", train)
    monkeypatch.setattr(command, "evaluate", evaluate)
    monkeypatch.setattr(command, "load_training_data",
                        lambda *_: command._VlmTrainingData(_Conversations(None, [], []),
                                                            _Conversations(None, [], [])))
    out, results, seen = tmp_path / "out", tmp_path / "results", []
    main(["vlm", "random:0", "--preset", "smoke", "--benchmark", "VMCBench", "--source",
          str(tmp_path / "VMCBench_DEV.tsv"), "--out", str(out),
          "--save-tables", str(results), "--analysis.n_resamples", "5", *options])
    assert seen == [form]
    for made in (out / "VMCBench/tables", *(out / "VMCBench/answers").iterdir(), results):
        assert read_manifest(made)["settings"]["form"] == form
    assert f"Answer format {form}" in (out / "VMCBench/report.html").read_text()
    # smoke learns texts
    assert ("add --override forms=texts,letters" in capsys.readouterr().err) == (form == "letters")

def test_other_pictures_are_asked_about_again(tmp_path):
    "The same questions about pictures that were replaced are other questions."
    from ccd.vqa.benchmarks.loading import load_questions
    about = []
    for color in (0, 1):
        file = tmp_path / f"{color}_DEV.tsv"
        vmcbench(file)
        if color:
            file.write_text(file.read_text().replace(base64.b64encode(png(8)).decode(),
                                                     base64.b64encode(png(9)).decode()))
        about.append(command._about("random:0",
                                    load_questions("VMCBench", source=str(file)).questions,
                                    "letters"))
    assert about[0]["images"] != about[1]["images"]

def test_conversations_that_are_left_out_lie_beside_the_answers(tmp_path, monkeypatch):
    for k in range(2): (tmp_path / f"{k}.png").write_bytes(png(k))
    def row(k, *m):
        return dict(id=f"c{k}", image=f"{k}.png",
                    conversations=[{"from": who, "value": "x"} for who in m])
    (tmp_path / "c.json").write_text(json.dumps([row(0, "human", "gpt")]))
    (tmp_path / "i.json").write_text(json.dumps([row(1, "human", "gpt"), row(0, "human", "human"),
                                                 None]))
    learnt = command.load_training_data(preset("smoke"), vlm_preset("smoke"), tmp_path / "c.json",
                                        tmp_path / "i.json", tmp_path)
    command._keep_skipped(tmp_path, learnt)
    t = pd.read_csv(tmp_path / "left_out.csv", keep_default_na=False)
    assert t.values.tolist() == [[2, "c0", "conversation", "two messages of human in a row",
                                  "questions"],
                                 [3, "", "conversation", "no object, but null", "questions"]]
    (tmp_path / "c.json").write_text(json.dumps([dict(row(0, "human", "gpt"), image=None)]))
    with pytest.raises(UserError, match="no conversation of .*c.json names an image"):
        command.load_training_data(preset("smoke"), vlm_preset("smoke"), tmp_path / "c.json",
                                   tmp_path / "i.json", tmp_path)

@pytest.mark.parametrize("said, why", [
    (["vlm"], "name one encoder or more"),
    (["vlm", "nobody:0"], "unknown encoder 'nobody:0"),
    (["vlm", "random:0", "--model", "huge"], "unknown preset 'huge'"),
    (["vlm", "random:0", "--override", "width"], "expected FIELD=VALUE"),
    (["vlm", "random:0", "--override", "girth=3"], "unknown field 'girth'"),
    (["vlm", "random:0", "--override", "tune.samples=many"], "cannot be 'many'"),
    (["vlm", "random:0", "--captions", "a.json"], "two JSON files"),
    (["vlm", "random:0", "--benchmark", "Vibes"], "Vibes"),
    (["vlm", "random:0", "--form", "rhymes"], "unknown form 'rhymes'"),
    (["vlm", "random:0", "--override", "fit=stretch"], "by 'stretch'"),
    (["vlm", "colors:8"], "no patch tokens")])
def test_bad_input_is_said_before_anything_is_trained(said, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*said, *([] if said == ["vlm"] else ["--preset", "smoke"])])
    assert stop.value.code == 2 and why in capsys.readouterr().err
    assert not any(tmp_path.rglob("*.safetensors"))

def test_fields_are_changed_by_text():
    v = apply_overrides(vlm_preset("smoke"),
                        ("tune.samples=96", "forms=texts,letters", "align.lr=0.01",
                         "language=scratch"))
    assert ((v.tune.samples, v.forms, v.align.lr, v.language)
            == (96, ("texts", "letters"), 0.01, "scratch"))

# --- in the study

def test_a_study_asks_a_language_model_and_tells(whole, tiny, tmp_path, monkeypatch):
    from ccd.study import command
    from ccd.vqa.llava import settings as vlm
    out, results = tmp_path / "study", tmp_path / "results"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("comparison", "probes"))
    monkeypatch.setitem(vlm.VLM_PRESETS, "few", lambda: apply_overrides(vlm_preset("smoke"), FEW))
    settings = override(tiny, **{"analysis.vlm": "few", "analysis.vqa_questions": 4})
    page = command.study(settings, out)
    command.export_study(out, results, settings)
    assert "Visual question answering" in page.read_text()
    assert {"vlm-summary.csv", "vlm-differences.csv"} <= set(read_manifest(results)["outputs"])
    assert set(pd.read_csv(results / "vlm-encoders.csv").encoder) == {"CLIP", "DINO"}
    assert list(differences(results, RESULTS / "mini")) == []
