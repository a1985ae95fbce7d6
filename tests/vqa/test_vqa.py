"""Benchmarks, rules, averages and tests of gaps, against published forms and independent
computation."""
import base64, io, itertools, json, random, sys, tracemalloc
import numpy as np, pandas as pd, pytest
from datasets import Dataset, Image as ImageFeature, List
from PIL import Image
from scipy import stats as st
from ccd.vqa.benchmarks import loading, reading, scoring, suite
from ccd.vqa.statistics import aggregation, logs as statistics_logs, significance
from ccd.files import UserError
from ccd.stats import (Estimate, cluster_bootstrap_means, holm, mcnemar_exact, mcnemar_power,
                       minimum_detectable_difference, paired_bootstrap, pooled_variance, sign_flip,
                       t_interval, t_test)
from ccd.vqa.benchmarks.questions import CAMBRIAN, VMCBENCH, _check_questions
from ccd.vqa.benchmarks.reading import _parse_published, parse_answer
from ccd.vqa.benchmarks.scoring import _RULES
from ccd.vqa.benchmarks.suite import BENCHMARKS, _prompt
from ccd.vqa.benchmarks.loading import load_questions
from ccd.vqa.statistics.answers import _answer_coverage, answer_table
from ccd.vqa.statistics.aggregation import (_AVERAGING_CONVENTIONS, _simulate_answers, aggregate,
                                            bootstrap_summary, bootstrap_sums, conventions)
from ccd.vqa.statistics.significance import (_above_baseline, compare_scores, informative_subsets,
                                             verdict)
from ccd.vqa.statistics.logs import read_log
from ccd.vqa.statistics.report import report

pytestmark = pytest.mark.numeric

def picture(k):
    f = io.BytesIO()
    Image.new("RGB", (8, 8), (k % 256, k // 256, 7)).save(f, "png")
    return f.getvalue()

def question(k, **changes):
    return dict(index=k, question=f"What is {k}?", A="one", B="two", C="three", D="four",
                answer="ABCD"[k % 4],
                category="TextVQA", image=dict(bytes=picture(k), path=None), item_id=f"i{k}",
                cluster=f"i{k}",
                pair_id="", split="test") | changes

def asked(n=8, **changes):
    rows = [question(k, **changes) for k in range(n)]
    return Dataset.from_list(rows).cast_column("image", ImageFeature())

# --- published forms

LMMS = """SEEDBench general MMStar general A-OKVQA general VizWiz general MMVet general VQAv2 general OKVQA general
    MMMU reason MathVista reason ScienceQA reason RealWorldQA reason GQA reason MathVision reason TextVQA ocr OCRVQA ocr
    AI2D doc ChartQA doc DocVQA doc InfoVQA doc TableVQABench doc""".split()  # noqa: E501

def test_the_map_of_vmcbench_is_the_published_one():
    mine = {s: c for c, subsets in VMCBENCH.items() for s in subsets}
    assert mine == dict(zip(LMMS[::2], LMMS[1::2])) and sum(map(len, VMCBENCH.values())) == 20

def test_the_map_of_cambrian_has_four_times_four_and_a_benchmark_for_each():
    names = [n for ns in CAMBRIAN.values() for n in ns]
    assert ([len(n) for n in CAMBRIAN.values()] == [4] * 4
            and set(names) == set(BENCHMARKS) - {"VMCBench"})
    for b in BENCHMARKS.values():
        assert b.rule in _RULES and (not b.published or b.published in _RULES)

def test_the_prompt_of_vmcbench_is_the_published_one():
    said = _prompt(question(0))
    assert said.encode() == (b"Question: What is 0?\nOptions:\nA. one\nB. two\nC. three\nD. four\n"
                             b"Answer with the option's letter from the given choices directly.\n")

def test_braces_in_a_question_are_text():
    assert "{q} and {options}" in _prompt(question(0, question="{q} and {options}"))

# --- parsing

def as_written(text, options, toss): # the published order of looks, spelt out
    for c in [",", ".", "!", "?", ";", ":", "'"]: text = text.strip(c)
    text = " " + text + " "
    found = [l for l in options if "(" + l + ")" in text or l + ". " in text]
    def place(l):
        return text.rfind("(" + l + ")")
    if not found:
        found, place = ([l for l in options if " " + l + " " in text],
                        lambda l: text.rfind(" " + l + " "))
    if not found and len(text.split()) > 5:
        found = [l for l in options if options[l].lower() in text.lower()]
        def place(l):
            return text.lower().rfind(options[l].lower())
    if not found: return toss
    places = [place(l) for l in found]
    return found[places.index(max(places))]

def test_the_published_parser_is_the_published_one():
    rng, options = random.Random(0), dict(A="a cat", B="two", C="in the USA", D="dog")
    bits = ["A", "B", "(C)", "D.", "A.", "cat", "two", "USA.", "the", "is", "a cat", "(A)", "dog",
            "answer", "B,", "."]
    for _ in range(3000):
        text = " ".join(rng.choices(bits, k=rng.randint(0, 8)))
        coin = random.Random(1)
        assert (_parse_published(text, options, coin)
                == as_written(text, options, random.Random(1).choice("ABCD")))

@pytest.mark.parametrize("said, letter", [
    ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B. two", "B"), ("The answer is B", "B"),
    ("A or (B)", "B"),
    ("A. no, rather B. yes", "B"), ("(A) no, rather (D)", "D"), ("made in the USA. (B)", "B"),
    ("A cat is sitting on the mat", "A"), ("I think that it shows a dog", "D"),
    ("A dog is sitting on the mat", "D"),
    ("no idea", None), ("", None), (None, None), ("E", None), ("b", "B"), ("USA. Answer", "C"),
    ("A dog sits", "D"), ("A dog or USA", None)])
def test_parse(said, letter):
    assert parse_answer(said, dict(A="a cat", B="two", C="USA", D="dog")) == letter

def test_nine_options_and_the_pronoun():
    nine = {l: f"word {l.lower()}" for l in "ABCDEFGHI"}
    assert (parse_answer("I", nine) == "I" and parse_answer("(I)", nine) == "I"
            and parse_answer("what I see is H", nine) == "H")

def test_the_coin_is_one_per_question_and_seeded():
    said = dict.fromkeys(range(200), "no idea")
    q = asked(200)
    a, b = (answer_table("VMCBench", q, said, "x", rule="coin_toss").score for _ in range(2))
    half = answer_table("VMCBench", q.select(range(199, 99, -1)),
                        {k: said[k] for k in range(100, 200)}, "x", rule="coin_toss")
    assert (a == b).all() and 0.1 < a.mean() < 0.4
    assert half.set_index("question_id").score.sort_index().tolist() == a[100:].tolist()
    assert (answer_table("VMCBench", q, said, "x", rule="coin_toss", toss=1).score != a).any()
    assert answer_table("VMCBench", q, said, "x").score.sum() == 0

# --- rules

CASES = [ # rule, said, answers, score
    ("exact", "Yes.", ["yes"], 1), ("exact", "yes it is", ["yes"], 0),
    ("yes_no", "Yes, it is", ["Yes"], 1), ("yes_no", "no", ["No"], 1), ("yes_no", "n", ["No"], 1),
    ("yes_no", "it is, yes", ["Yes"], 0), ("yes_no", "", ["No"], 0), ("yes_no", "know", ["No"], 1),
    ("relaxed", "104.9", ["100"], 1), ("relaxed", "105.1", ["100"], 0),
    ("relaxed", "95", ["100"], 1),
    ("relaxed", "45%", ["0.45"], 1), ("relaxed", "Red", ["red"], 1), ("relaxed", "0", ["0"], 1),
    ("relaxed", "-5", ["5"], 0),
    ("relaxed_plain", "45%", ["0.45"], 0), ("relaxed_plain", "105", ["100"], 1),
    ("substring", "it says Hello World", ["hello world"], 1),
    ("substring", "hello", ["hello world"], 0),
    ("letter_or_near", "the answer is 10.4.", ["10"], 1), ("letter_or_near", "10.52", ["10"], 0),
    ("letter_or_near_published", "10.52", ["10"], 1),
    ("letter_or_near", "blue", ["Blue", "navy"], 1),
    ("after_reasoning", "2 + 2, so the answer is 4.", ["4"], 1),
    ("after_reasoning", "Answer: 1.23", ["1.2"], 1),
    ("after_reasoning", "Answer: 1.3", ["1.2"], 0), ("after_reasoning", "1,200", ["1200"], 1),
    ("whole_answer", "2 + 2, so the answer is 4.", ["4"], 0), ("whole_answer", "4", ["4"], 1),
    ("word_or_letter", "The answer is A", ["A"], 1), ("word_or_letter", "Yes indeed", ["yes"], 1),
    ("word_or_letter", "", ["yes"], 0), ("word_or_letter", "B", ["A"], 0),
    ("anls", "abcd", ["abce"], 0.75), ("anls", "abcd", ["wxyz"], 0), ("anls", "abcd", ["axyz"], 0),
    ("anls", "abcd", ["abyz"], 0.5), ("anls", " ACME corp", ["acme  Corp", "x"], 1)]

@pytest.mark.parametrize("rule, said, answers, score", CASES)
def test_rules(rule, said, answers, score):
    q = dict(index=0, answer=answers[0], answers=answers, options={}, category="")
    assert _RULES[rule](said, q) == pytest.approx(score)

@pytest.mark.parametrize("rule, said, score", [
    ("first_letter", "apples", 1), ("first_letter", "Answer: A", 1),
    ("letter", "The answer is: A", 1),
    ("first_letter", "The answer is: A", 0), ("first_letter", "(A)", 1),
    ("first_letter", "The answer is A.", 1),
    ("first_letter", "B", 0), ("letter_or_text", "a cat", 1), ("letter_or_text", "a cat sits", 0),
    ("letter_or_text", "(A).", 1), ("letter_or_text", "Answer: A cat", 1),
    ("letter_or_sentence", "A cat.", 1), ("after_reasoning", "It purrs. Answer: A", 1),
    ("after_reasoning", "Answer: a cat", 1),
    ("letter", "A", 1), ("letter", "apples", 0)])
def test_rules_with_options(rule, said, score):
    q = dict(index=0, answer="A", answers=["a cat"], options=dict(A="a cat", B="dog"), category="")
    assert _RULES[rule](said, q) == score

def test_formulas_keep_their_case_and_lose_their_blanks():
    q = dict(answer="x ^ 2", answers=["x ^ 2"], options={},
             category="Handwritten Mathematical Expression Recognition")
    assert _RULES["substring"]("so x^2", q) == 1 and _RULES["substring"]("X^2", q) == 0

@pytest.mark.parametrize("agree", range(11))
def test_soft_accuracy_is_the_mean_over_all_nines(agree):
    people = ["cat"] * agree + [f"dog {k}" for k in range(10 - agree)]
    nines = itertools.combinations(people, 9)
    want = np.mean([min(1, n.count("cat") / 3) for n in nines])
    assert _RULES["soft_accuracy"]("A cat!", dict(answers=people)) == pytest.approx(want)

@pytest.mark.parametrize("said, words", [
    ("The two cats", "2 cats"), ("dont", "don't"), ("1,000", "1000"), ("x-b", "x b"),
    ("x- b", "x b"), ("x -b", "x b"), ("U.S.A.", "usa"),
    ("3.5", "3.5"), ("cat's", "cat 's"), ("none", "0"), ("yall'll\n", "y'all'll"),
    ("couldnt've", "couldn't've"), ("hello, world?", "hello world"), ("", "")])
def test_words_are_written_alike(said, words): assert scoring._vqa_words(said) == words

def test_edit_distance_is_the_recursive_one():
    def slow(a, b):
        if not a or not b: return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))
    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 6))) for _ in range(2))
        assert scoring._edit_distance(a, b) == slow(a, b)

# --- loading: small datasets in the schema of each benchmark

def image(k): return dict(bytes=picture(k), path=None)

def four(k): return dict(zip("ABCD", (f"first {k}", f"second {k}", f"third {k}", f"fourth {k}")))

SCHEMAS = { # name -> a row
    "VMCBench": lambda k: dict(index=k + 5, question="q?", **four(k), answer="ABCD"[k % 4],
                               category="OCRVQA", image=image(k)),
    "MME_P": lambda k: dict(question_id=f"{k // 2}.png", image=image(k // 2),
                            question=f"Is it {k}? Please answer yes or no.",
                            answer=("Yes", "No")[k % 2],
                            category=("color", "OCR", "code_reasoning")[k // 2 % 3]),
    "MMBench": lambda k: dict(index=k // 2 + k % 2 * 1_000_000, question="q?",
                              hint=("nan", "a hint")[k // 2 % 2], A="x", B="y",
                              C=("nan", "z")[k // 2 % 2], D="nan", answer="AB"[k % 2],
                              category="colour", image=image(k // 2),
                              source="web", **{"l2-category": "c"}, comment="nan", split="dev"),
    "SEED_I": lambda k: dict(question="q?", **{f"choice_{l}": l * 3 for l in "abcd"},
                             answer="ABCD"[k % 4], question_id=str(k),
                             question_type_id=k % 3, data_type="image",
                             image=[image(k)] * (2 if k == 1 else 1)),
    "GQA": lambda k: dict(id=str(k), imageId=f"n{k // 2}", question="q?", answer="left",
                          fullAnswer="It is left"),
    "ScienceQA_I": lambda k: dict(image=None if k == 2 else image(k), question="q?",
                                  choices=["x", "yy", "z", "w", "v"][:2 + k % 4],
                                  answer=k % 2, hint=("", "look")[k % 2],
                                  subject="natural science"),
    "MMMU_V": lambda k: dict(id=f"validation_Art_Theory_{k}", question="Which <image 1>?",
                             answer="9.5" if k % 2 else "B",
                             options="[]" if k % 2 else "['x', \"it's\", 'z']", image_1=image(k),
                             image_2=None,
                             question_type="open" if k % 2 else "multiple-choice"),
    "MathVista_M": lambda k: dict(pid=str(k), question="q", query="Hint. Question: q",
                                  image="images/1.jpg", decoded_image=image(k),
                                  choices=None if k % 2 else ["10", "20"],
                                  answer="1.5" if k % 2 else "20", precision=1.0,
                                  question_type="free_form" if k % 2 else "multi_choice",
                                  metadata=dict(category="math")),
    "AI2D": lambda k: dict(question="q?", options=["x", "y", "z", "w"], answer=str(k % 4),
                           image=image(k)),
    "ChartQA": lambda k: dict(type=("human_test", "augmented_test")[k % 2], question="q?",
                              answer=("14", "Red")[k % 2], image=image(k)),
    "OCRBench": lambda k: dict(dataset="IIIT5K", question="what?",
                               question_type="Regular Text Recognition", answer=["CENTRE"],
                               image=image(k)),
    "TextVQA": lambda k: dict(image_id=f"t{k // 2}", question_id=k, question="q?",
                              image=image(k // 2), answers=["nokia"] * 10,
                              ocr_tokens=["NOKIA", "3310"]),
    "DocVQA": lambda k: dict(questionId=str(k), question="q?", image=image(k), docId=k,
                             ucsf_document_id=f"d{k // 2}",
                             ucsf_document_page_no="1", answers=["Acme", "ACME corp"],
                             data_split="val"),
    "MMVP": lambda k: dict(Index=k + 1, Question="q?", Options="(a) Open (b) Closed",
                           image=image(k),
                           **{"Correct Answer": ("(a)", "(b)")[k % 2]}),
    "RealWorldQA": lambda k: dict(image=image(k),
                                  question="Which?\nA. x\nB. y\nPlease answer directly.",
                                  answer=("A", "Yes")[k % 2]),
    "CVBench_2D": lambda k: dict(idx=k, type="2D", task="Count", image=image(k), question="q",
                                 choices=["1", "2", "3"],
                                 answer="(B)", prompt="q Select. (A) 1 (B) 2 (C) 3",
                                 source=("ADE20K", "COCO")[k % 2]),
    "CVBench_3D": lambda k: dict(idx=k, type="3D", task=("Depth", "Distance")[k % 2],
                                 image=image(k), question="q",
                                 choices=["x", "y"], answer="(A)", prompt="q (A) x (B) y",
                                 source="Omni3D")}

def saved(name, folder, n=8, **changes):
    rows = [SCHEMAS[name](k) | changes for k in range(n)]
    d = Dataset.from_list(rows)
    for c in ("image", "image_1", "decoded_image"):
        if c in d.column_names and c == "image" and name == "SEED_I":
            d = d.cast_column(c, List(ImageFeature()))
        elif c in d.column_names and not isinstance(rows[0][c], str):
            d = d.cast_column(c, ImageFeature())
    d.save_to_disk(folder / name)
    return str(folder / name)

def loaded(name, folder, **how):
    if name == "GQA":
        Dataset.from_list([dict(id=f"n{k}", image=image(k))
                           for k in range(4)]).cast_column("image", ImageFeature()
                          ).save_to_disk(folder / "pictures")
        how |= dict(images=str(folder / "pictures"))
    return load_questions(name, source=saved(name, folder), **how)

@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_asks_and_scores(name, published, tmp_path):
    assert set(SCHEMAS) == set(BENCHMARKS)
    got = loaded(name, tmp_path, published=published)
    q, b = _check_questions(got.questions, BENCHMARKS[name].max_options), BENCHMARKS[name]
    assert len(q) + len(got.skipped) == 8
    assert q[0]["image"].size == (8, 8)
    rows = q.remove_columns("image").to_list()
    for r in rows: assert r["question"] in _prompt(r, name) and _prompt(r, name).count("A. ") <= 1
    gold = {r["index"]: r["answer"] for r in rows}
    for rule in {b.rule, b.published or b.rule} - {"coin_toss"}: # a coin is never wrong for sure
        right = answer_table(name, q, gold, "gold", rule=rule)
        assert (right.score == 1).all(), (rule, right[right.score < 1].iloc[0].to_dict())
        assert (answer_table(name, q, dict.fromkeys(gold, "zzz"), "wrong",
                             rule=rule).score == 0).all()
        assert (answer_table(name, q, {}, "silent", rule=rule).score == 0).all()

def test_what_the_published_protocols_leave_out_is_listed(tmp_path):
    def reasons(name):
        return loaded(name, tmp_path).skipped.reason.tolist()
    assert reasons("SEED_I") == ["several frames: a video"]
    assert reasons("ScienceQA_I") == ["no image"]
    assert reasons("MME_P") == ["code_reasoning is no perception"] * 2

def test_mmvp_labels(tmp_path):
    rows = [SCHEMAS["MMVP"](k) for k in range(300)]
    swap = {"(a)": "(b)", "(b)": "(a)"}
    # the right answers of the rows with swapped labels, 1-based
    wrong = {99: "B", 100: "A", 279: "B", 280: "A"}
    for mended in (False, True):
        at = tmp_path / str(mended)
        d = [r
             | ({"Correct Answer": swap[r["Correct Answer"]]} if mended and r["Index"] in wrong
                else {}) for r in rows]
        Dataset.from_list(d).cast_column("image", ImageFeature()).save_to_disk(at)
        now, old = (load_questions("MMVP", source=str(at), published=p).questions
                    for p in (False, True))
        plain = ["AB"[k % 2] for k in range(300)]
        assert [k + 1 for k in range(300) if now["answer"][k] != plain[k]] == list(wrong)
        assert {i: now["answer"][i - 1] for i in wrong} == wrong and list(old["answer"]) == plain
    assert (now["pair_id"][98] == now["pair_id"][99] != now["pair_id"][97]
            and len(set(now["pair_id"])) == 150)

def test_textvqa_shows_the_ocr_engines_reading_only_as_published(tmp_path):
    now, old = (loaded("TextVQA", tmp_path / str(p), published=p).questions for p in (False, True))
    assert ("NOKIA" not in _prompt(now[0], "TextVQA")
            and "Reference OCR tokens: NOKIA, 3310" in _prompt(old[0], "TextVQA"))
    assert now["cluster"][0] == now["cluster"][1] != now["cluster"][2]

def test_equal_pictures_are_one_cluster(tmp_path):
    rows = [SCHEMAS["VMCBench"](k) | dict(image=image(k // 2)) for k in range(6)]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).save_to_disk(tmp_path / "d")
    c = load_questions("VMCBench", source=str(tmp_path / "d")).questions["cluster"]
    assert c[0] == c[1] and len(set(c)) == 3

def tsv(path, rows):
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return str(path)

def test_the_tsv_of_vmcbench(tmp_path):
    def code(k):
        return base64.b64encode(picture(k)).decode()
    rows = [dict(index=k, question="q\nand more", A="None", B="007", C="NA", D="1.0", answer="A",
                 category="GQA", image=code(k))
            for k in range(3)]
    rows[2]["image"] = "0" # the picture of question 0
    q = load_questions("VMCBench", source=tsv(tmp_path / "VMCBench_DEV.tsv", rows)).questions
    assert q[0]["A"] == "None" and q[0]["B"] == "007" and q[0]["C"] == "NA" and q[0]["D"] == "1.0"
    assert q["index"][:] == [0, 1, 2] and q[2]["item_id"] == q[0]["item_id"] != q[1]["item_id"]
    assert np.asarray(q[1]["image"])[0, 0].tolist() == [1, 0, 7] and "and more" in q[0]["question"]

# --- bad input

@pytest.mark.parametrize("change, words", [
    (dict(image=None), "no image"), (dict(image=dict(bytes=None, path=None)), "no image"),
    (dict(answer="E"), "none of its options"),
    (dict(answer=""), "none of its options"), (dict(question=""), "no question"),
    (dict(C=""), "a blank option"),
    (dict(E="five"), "5 options, at most 4")])
def test_a_question_with_a_fault_is_named(change, words):
    rows = [question(k) | dict(E="") for k in range(3)]
    rows[1] |= change
    d = Dataset.from_list(rows).cast_column("image", ImageFeature())
    with pytest.raises(UserError, match=f"1 of 3 questions cannot be asked: 1 .*{words}"):
        _check_questions(d)

def test_faults_in_a_benchmark_are_set_aside_and_listed(tmp_path, capsys):
    rows = [SCHEMAS["VMCBench"](k) for k in range(6)]
    rows[0] |= dict(image=None); rows[1] |= dict(answer="F"); rows[2] |= dict(B="")
    Dataset.from_list(rows).cast_column("image", ImageFeature()).save_to_disk(tmp_path / "d")
    q, skipped = load_questions("VMCBench", source=str(tmp_path / "d"))
    assert q["index"][:] == [8, 9, 10] and skipped.row.tolist() == [0, 1, 2]
    for why, want in zip(skipped.reason, ("no image", "none of its options", "a blank option")):
        assert want in why
    assert "3 of 6 rows skipped" in capsys.readouterr().err

def test_double_ids(tmp_path):
    rows = [SCHEMAS["VMCBench"](k) | dict(index=3) for k in range(2)]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="more than once: 3"):
        load_questions("VMCBench", source=str(tmp_path / "d"))

def test_another_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match="no row of .* can be asked: 8 not a row of VMCBench"):
        load_questions("VMCBench", source=saved("AI2D", tmp_path))
    with pytest.raises(UserError, match="unknown benchmark 'VQA'"): load_questions("VQA")
    with pytest.raises(UserError, match="could not open"):
        load_questions("MME_P", source=str(tmp_path))

@pytest.mark.parametrize("name, old",
                         [("MME_P", "lmms-lab/MME"), ("MMBench", "lmms-lab/MMBench_EN"),
                          ("AI2D", "lmms-lab/ai2d")])
def test_a_place_on_the_hub_that_is_gone_names_the_older_one(name, old, monkeypatch):
    def gone(place, config, split): raise FileNotFoundError(f"no {place}")
    monkeypatch.setattr(loading, "load_dataset", gone)
    with pytest.raises(UserError, match=f"July 2026 it was {old}: try that"): load_questions(name)
    with pytest.raises(UserError) as e: load_questions(name, source="mine/copy")
    assert "July 2026" not in str(e.value)

def test_predictions_for_another_split():
    with pytest.raises(UserError,
                       match="2 of 3 answers are to questions that TextVQA does not have"):
        answer_table("TextVQA", asked(4), {0: "A", 77: "A", 78: "A"}, "clip")
    a = answer_table("x", asked(4), {}, "clip")
    b = answer_table("x", asked(4, answer="C"), {}, "dino")
    with pytest.raises(UserError, match="3 questions have a different correct answer"):
        bootstrap_summary(pd.concat([a, b]), dict(ocr=["TextVQA"]))

def test_an_unknown_subset_double_answers_scores_outside_and_half_pairs():
    a = answer_table("x", asked(4), {}, "clip")
    with pytest.raises(UserError, match="1 subsets are not in the category map: TextVQA"):
        bootstrap_summary(a, dict(doc=["AI2D"]))
    with pytest.raises(UserError, match="answered more than once"):
        bootstrap_summary(pd.concat([a, a]), dict(ocr=["TextVQA"]))
    with pytest.raises(UserError, match="outside 0..1"):
        bootstrap_summary(a.assign(score=2.0), dict(ocr=["TextVQA"]))
    with pytest.raises(UserError, match="pairs are not whole"):
        bootstrap_summary(a.assign(benchmark="MMVP", pair_id=["p", "p", "q", "r"]),
                          dict(v=["MMVP"]))
    with pytest.raises(UserError, match="lack the columns"):
        bootstrap_summary(a.drop(columns="cluster"), dict(ocr=["TextVQA"]))
    with pytest.raises(UserError, match="found in two benchmarks"):
        bootstrap_summary(pd.concat([a, a.assign(benchmark="TextVQA")]), dict(ocr=["TextVQA"]))

def test_a_model_that_answers_nothing_is_counted_and_scores_nothing():
    a = answer_table("x", asked(4), {0: None, 1: "", 2: float("nan")}, "silent")
    assert (a.score.sum() == 0
            and _answer_coverage(a).iloc[0][["n_questions", "n_empty", "n_unparsed"]].tolist()
            == [4, 4, 0])
    tossed = answer_table("x", asked(40), {}, "silent", rule="coin_toss")
    assert tossed.score.sum() == 0
    t = bootstrap_summary(a, dict(ocr=["TextVQA"]), n_resamples=50)
    assert (t.score == 0).all() and (t.ci_high == 0).all() and (t.n_questions == 4).all()

# --- averages

MAP = dict(ocr=["a", "b"], doc=["c"])

def some(seed=0, sizes=dict(a=30, b=50, c=20), **encoders):
    return _simulate_answers(sizes, encoders or dict(x=0.6, y=0.5), seed=seed)

def number(t, name, convention, encoder="x", column="score"):
    return t[(t.encoder == encoder) & (t.name == name)
             & (t.average == convention)][column].item()

def test_macro_micro_and_the_three_conventions():
    a = some()
    x = a[a.encoder == "x"]
    by = x.groupby("subset").score.mean()
    def micro(subsets):
        return x[x.subset.isin(subsets)].score.mean()
    t = bootstrap_summary(a, MAP, n_resamples=100)
    for c, subsets in MAP.items():
        assert number(t, c, "macro") == pytest.approx(by[subsets].mean())
        assert number(t, c, "micro") == pytest.approx(micro(subsets))
    assert (number(t, "overall", "macro") == pytest.approx(by.mean())
            and number(t, "overall", "micro") == pytest.approx(x.score.mean()))
    c = conventions(a, MAP)
    c = c[c.encoder == "x"].set_index("convention")
    assert (c.loc["VLMEvalKit"][["ocr", "doc", "overall"]].tolist()
            == pytest.approx([by[["a", "b"]].mean(), by["c"], x.score.mean()]))
    assert (c.loc["lmms-eval"][["ocr", "doc", "overall"]].tolist()
            == pytest.approx([micro(["a", "b"]), by["c"], x.score.mean()]))
    assert c.loc["AutoConverter"].overall == pytest.approx(by.mean())
    assert set(c.index) == set(_AVERAGING_CONVENTIONS)

def test_missing_subsets_are_shown_not_averaged_away():
    a = some()
    a = a[~((a.encoder == "y") & (a.subset == "b"))] # y never saw b
    t = bootstrap_summary(a, MAP, n_resamples=50)
    assert (not np.isnan(number(t, "ocr", "macro")) and np.isnan(number(t, "ocr", "macro", "y"))
            and np.isnan(number(t, "overall", "micro", "y")))
    assert (number(t, "ocr", "macro", "y", "missing") == "b"
            and number(t, "ocr", "macro", "x", "missing") == "")
    p = bootstrap_summary(a, MAP, n_resamples=50, allow_missing=True)
    only = a[(a.encoder == "y") & (a.subset == "a")].score.mean()
    assert number(p, "ocr", "macro", "y") == pytest.approx(only) == number(p, "ocr", "micro", "y")
    assert (number(p, "ocr", "micro", "y", "note") == "partial"
            and number(p, "ocr", "micro", "x", "note") == "")
    assert (number(p, "ocr", "macro", "y", "subsets") == "a"
            and number(p, "ocr", "macro", "y", "n_questions") == 30)
    d = compare_scores(a, "x", "y", MAP, n_resamples=50)
    r = d[(d.name == "ocr") & (d.average == "macro")].iloc[0]
    assert np.isnan(r.difference) and np.isnan(r.p) and r.verdict == "not known: b is missing"
    gone = bootstrap_summary(a[a.subset != "b"], MAP, n_resamples=50)
    assert (np.isnan(number(gone, "ocr", "macro"))
            and number(gone, "ocr", "macro", "x", "missing") == "b")

def test_a_partial_comparison_is_over_what_both_have():
    a = some(sizes=dict(a=60, b=60, c=60), x=dict(a=0.5, b=1.0, c=0.5), y=dict(a=0.5, b=0.5, c=0.5))
    a = a[~((a.encoder == "y") & (a.subset == "b"))]
    t = compare_scores(a, "x", "y", MAP, allow_missing=True,
                       n_resamples=50).set_index(["name", "average"])
    for c in ("macro", "micro"):
        assert (t.difference["ocr", c] == pytest.approx(t.difference["a", ""])
                and t.missing["ocr", c] == "b")
        assert t.subsets["overall", c] == "a, c" and t.note["overall", c] == "partial"
    assert np.isnan(t.difference["b", ""])

def test_the_published_rule_by_its_name():
    said = {0: "The answer is: A", 1: "B"}
    own, theirs = (answer_table("AI2D", asked(2), said, "x", rule=r).score.tolist()
                   for r in ("", "published"))
    assert own == [1, 1] and theirs == [0, 1]
    with pytest.raises(UserError, match="unknown rule 'best'"):
        answer_table("AI2D", asked(2), said, "x", rule="best")

def test_some_questions_of_a_subset_is_an_error_or_said():
    a = some()
    a = a.drop(a[(a.encoder == "y") & (a.subset == "a")].index[:4])
    with pytest.raises(UserError, match=r"y \(seed 0\) lacks 4"): bootstrap_summary(a, MAP)
    t = bootstrap_summary(a, MAP, intersect=True, n_resamples=50)
    assert number(t, "a", "", "x", "n_questions") == 26 == number(t, "a", "", "y", "n_questions")

def test_uninformative_subsets_leave_the_averages_openly():
    a = some()
    t = bootstrap_summary(a, MAP, excluded=("b",), n_resamples=50)
    assert number(t, "ocr", "macro") == number(t, "a", "") == number(t, "ocr", "micro")
    assert (number(t, "ocr", "macro", "x", "excluded") == "b"
            and number(t, "b", "", "x", "note") == "not informative")
    with pytest.raises(UserError, match="not in the map"):
        bootstrap_summary(a, MAP, excluded=("z",))

def test_mme_is_the_sum_of_ten_over_twenty():
    rng, rows = np.random.default_rng(0), []
    for k, task in enumerate(suite._PERCEPTION):
        for i in range(10 + k):
            for j in range(2): rows.append((task, f"{task}/{i}", float(rng.random() < 0.6)))
    t = pd.DataFrame(rows, columns=["subset", "pair_id", "score"])
    a = t.assign(benchmark="MME_P", question_id=range(len(t)), item_id=t.pair_id, cluster=t.pair_id,
                 options=None,
                 answer="Yes", prediction="Yes", p_options=None, encoder="x", seed=0)
    want = 0.0
    for task, g in t.groupby("subset"):
        pictures = g.groupby("pair_id").score
        want += 100 * g.score.mean() + 100 * (pictures.min()).mean()
    s = bootstrap_summary(a, CAMBRIAN, allow_missing=True, n_resamples=200)
    assert 100 * number(s, "MME_P", "") == pytest.approx(want / 20)
    assert (number(s, "MME_P", "", "x", "ci_low") < number(s, "MME_P", "")
            < number(s, "MME_P", "", "x", "ci_high"))

def test_mmvp_counts_pairs_and_cvbench_means_its_two_sources():
    q = asked(6)
    a = answer_table("MMVP", q, {0: "A", 1: "B", 2: "C", 3: "A", 4: "A", 5: "B"}, "x").assign(
        pair_id=[f"p{k // 2}" for k in range(6)], cluster=[f"p{k // 2}" for k in range(6)],
        subset="MMVP")
    ok = [True, True, True, False, True, True]
    assert (a.score == ok).all()
    t = bootstrap_summary(a, CAMBRIAN, allow_missing=True, n_resamples=50)
    assert (number(t, "MMVP", "")
            == pytest.approx(np.mean([ok[k] and ok[k + 1] for k in (0, 2, 4)])) == 2 / 3)
    assert number(t, "MMVP", "", "x", "n_questions") == 3 # pairs
    c = a.assign(benchmark="CVBench_2D", pair_id="", subset=["ADE20K"] * 4 + ["COCO"] * 2)
    t = bootstrap_summary(c, CAMBRIAN, allow_missing=True, n_resamples=50)
    assert number(t, "CVBench_2D", "") == pytest.approx((3 / 4 + 1) / 2)

def test_mmbench_is_circular():
    a = answer_table("MMBench", asked(4), {0: "A", 1: "B", 2: "C", 3: "A"}, "x").assign(
        pair_id=["1", "1", "2", "2"], subset="colour")
    assert number(bootstrap_summary(a, CAMBRIAN, allow_missing=True, n_resamples=50), "MMBench",
                  "") == 0.5

# --- drawing again

def scores_of(a, categories=MAP): return aggregation.aligned_scores(a, categories)

def test_the_bootstrap_has_the_spread_of_the_formula_and_of_the_plain_one():
    a = some(sizes=dict(a=300, b=200, c=100))
    s = scores_of(a)
    r = aggregate(*bootstrap_sums(s, 8000), s.cells, MAP)
    x = {k: a[(a.encoder == "x") & (a.subset == k)].score.values for k in "abc"}
    se = {k: v.std() / len(v)**0.5 for k, v in x.items()}
    drawn = r["category", "ocr", "macro"][:, s.models.index(("x", 0))]
    assert drawn.std() == pytest.approx((se["a"]**2 + se["b"]**2)**0.5 / 2, rel=0.05)
    assert drawn.mean() == pytest.approx((x["a"].mean() + x["b"].mean()) / 2, abs=0.003)
    y = a[(a.encoder == "y") & (a.subset == "a")].score.values
    d, lo, hi = paired_bootstrap(x["a"], y, n_resamples=8000)
    t = compare_scores(a, "x", "y", MAP, n_resamples=8000).set_index("name").loc["a"]
    assert (t.difference == pytest.approx(d) and t.ci_low == pytest.approx(lo, abs=0.01)
            and t.ci_high == pytest.approx(hi, abs=0.01))

def test_equal_models_never_differ_in_any_draw():
    a = some()
    twin = pd.concat([a[a.encoder == "x"], a[a.encoder == "x"].assign(encoder="y")])
    t = compare_scores(twin, "x", "y", MAP, n_resamples=500)
    assert ((t[["difference", "ci_low", "ci_high", "n_discordant"]] == 0).all().all()
            and (t.p == 1).all())

def test_clusters_across_subsets_are_drawn_as_one():
    a = some(sizes=dict(a=200, b=200, c=100), x=0.5)
    a.loc[a.subset == "b", "score"] = a.score[a.subset == "a"].values # the same luck
    apart = scores_of(a)
    together = scores_of(a.assign(cluster=np.where(a.subset == "b", a.question_id - 200,
                                                   a.question_id).astype(str)))
    assert ([len(w) for w, _ in aggregation._groups(apart)] == [1, 1, 1]
            and sorted(len(w) for w, _ in aggregation._groups(together)) == [1, 2])
    sd = [aggregate(*bootstrap_sums(s, 4000), s.cells, MAP)["category", "ocr", "macro"].std()
          for s in (apart, together)]
    assert sd[1] / sd[0] == pytest.approx(2**0.5, rel=0.06)

def test_clusters_of_unlike_size_against_a_plain_loop():
    rng = np.random.default_rng(3)
    a = some(sizes=dict(a=200, b=40, c=20), x=0.5)
    fam = rng.integers(0, 15, len(a))
    a = a.assign(cluster=fam.astype(str),
                 score=(rng.normal(size=15)[fam] + rng.normal(size=len(a)) > 0).astype(float))
    s = scores_of(a)
    mine = aggregate(*bootstrap_sums(s, 6000), s.cells, MAP)["overall", "overall", "macro"][:, 0]
    plain, x, subset = [], a.score.values, a.subset.values.astype(str)
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(fam == f) for f in rng.integers(0, 15, 15)])
        plain.append(np.mean([x[rows][subset[rows] == k].mean() for k in "abc"]))
    assert (np.nanstd(mine) == pytest.approx(np.nanstd(plain), rel=0.1)
            and np.nanmean(mine) == pytest.approx(np.nanmean(plain), abs=0.01))

def test_a_draw_has_as_many_clusters_as_there_are_also_beyond_16_bits():
    x = np.ones((70_000, 1), np.float32)
    assert (aggregation._drawn(x, 3, np.random.default_rng(0)) == 70_000).all()

def test_draws_do_not_depend_on_the_number_of_threads(monkeypatch):
    s = scores_of(some())
    one = bootstrap_sums(s, 300)
    monkeypatch.setattr(aggregation, "n_cpus", lambda: 1)
    assert all((a == b).all() for a, b in zip(one, bootstrap_sums(s, 300)))

# --- gaps

def test_p_values_are_those_of_statistics():
    a = some(sizes=dict(a=60, b=80, c=50), x=0.75, y=0.5)
    w = a.pivot(index=["subset", "question_id"], columns="encoder", values="score")
    t = compare_scores(a, "x", "y", MAP, n_resamples=4000)
    of = t.set_index(["name", "average"])
    for s in "abc": assert of.p[s, ""] == mcnemar_exact(w.x[s].values == 1, w.y[s].values == 1)
    weight = np.repeat([1 / 60, 1 / 80], [60, 80])
    both = w.loc[["a", "b"]]
    want = sign_flip(both.x.values * weight, both.y.values * weight, np.arange(140), 20_000, seed=9)
    assert of.p["ocr", "macro"] == pytest.approx(want, abs=0.015)
    assert (of.p_holm[[("a", ""), ("b", ""), ("c", "")]].tolist()
            == pytest.approx(holm(of.p[[("a", ""), ("b", ""), ("c", "")]].values)))
    assert (of.p_holm[[("ocr", "macro"), ("doc", "macro")]].tolist()
            == pytest.approx(holm(of.p[[("ocr", "macro"), ("doc", "macro")]].values)))
    assert of.n_discordant["a", ""] == (w.x["a"] != w.y["a"]).sum()

def test_fractions_and_clusters_go_by_sign_flips():
    a = some(sizes=dict(a=80, b=40, c=40), x=0.7, y=0.5)
    a["score"] = a.score * 0.9
    w = a[a.subset == "a"].pivot(index="question_id", columns="encoder", values="score")
    p = compare_scores(a, "x", "y", MAP, n_resamples=3000).set_index("name").p["a"]
    assert p == pytest.approx(mcnemar_exact(w.x.values > 0, w.y.values > 0), abs=0.02)
    pairs = a.assign(cluster=(a.question_id // 2).astype(str))
    p = compare_scores(pairs, "x", "y", MAP, n_resamples=3000).set_index("name").p["a"]
    assert p == pytest.approx(sign_flip(w.x.values, w.y.values, w.index.values // 2, 20_000, 5),
                              abs=0.02)

def seeds(n, gap, noise=0.0):
    rng = np.random.default_rng(1)
    return pd.concat([some(s, dict(a=200, b=200, c=200), x=0.5 + gap / 2 + noise * rng.normal(),
                           y=0.5 - gap / 2 + noise * rng.normal())
                      .assign(seed=s, cluster=lambda t: t.question_id.astype(str))
                      for s in range(n)])

def overall(*a, **k):
    return compare_scores(*a, n_resamples=500,
                          **k).set_index(["name", "average"]).loc[("overall", "macro")]

def means(a): # of each encoder's seeds, the mean of its subsets
    per = a.groupby(["encoder", "seed", "subset"]).score.mean().groupby(["encoder", "seed"]).mean()
    return per["x"].values, per["y"].values

def test_seeds_give_the_interval_of_two_samples_and_the_verdict_says_what_it_is_about():
    a = seeds(4, 0.2)
    x, y = means(a)
    r, want = overall(a, "x", "y", MAP), st.ttest_ind(x, y).confidence_interval()
    assert ([r.difference, r.seed_ci_low,
             r.seed_ci_high] == pytest.approx([x.mean() - y.mean(), *want])
            and (r.n_seeds_a, r.n_seeds_b) == (4, 4))
    assert (r.total_ci_low < r.ci_low and r.total_ci_high > r.ci_high
            and r.verdict == f"x leads by {100 * (x.mean() - y.mean()):.1f} points: over 4 seeds")
    wild = overall(seeds(3, 0.15, 0.3), "x", "y", MAP)
    assert (wild.verdict.endswith("on these checkpoints; not significant over 3 seeds")
            and wild.p < 0.05 < wild.p_total)
    tie = overall(seeds(1, 0.0), "x", "y", MAP)
    assert (tie.verdict.startswith("no significant difference") and np.isnan(tie.seed_ci_low)
            and np.isnan(tie.p_total))
    assert overall(seeds(1, 0.3), "x", "y", MAP).verdict.endswith(": these two checkpoints")

def test_the_error_is_that_of_questions_and_of_seeds():
    a = seeds(3, 0.1, 0.05)
    x, y = means(a)
    r = overall(a, "x", "y", MAP)
    w = a.groupby(["encoder", "subset", "question_id"]).score.mean().unstack("encoder")
    # three subsets weigh alike
    items = sum(np.var(d.x - d.y) / len(d) for _, d in w.groupby("subset")) / 9
    v = (np.var(x, ddof=1) + np.var(y, ddof=1)) / 2 * (1 / 3 + 1 / 3)
    se = (items + v)**0.5
    # Satterthwaite; four degrees of freedom are known
    half = st.t.ppf(0.975, se**4 / (v**2 / 4)) * se
    # 500 draws tell a spread to 3 %
    assert (r.total_ci_high - r.difference == pytest.approx(half, rel=0.08)
            == r.difference - r.total_ci_low)
    assert r.p_total == pytest.approx(2 * st.t.sf(r.difference / se, se**4 / (v**2 / 4)), rel=0.3)

def test_runs_of_one_recipe_are_rarely_called_two_recipes():
    """Two recipes that are one, whose runs lie two to four points apart: what questions alone make
    of it, and what both do."""
    rng, alone, both = np.random.default_rng(0), 0, 0
    for k in range(300):
        hard, runs = rng.normal(size=250), 0.1 * rng.normal(size=6)
        # of x, then of y
        right = (0.6**0.5 * hard[:,
                                 None] + 0.4**0.5 * rng.normal(size=(250, 6)) < runs).astype(float)
        d, (v, df) = (right[:, :3].mean(1) - right[:, 3:].mean(1),
                      pooled_variance(right.mean(0).reshape(2, 3)))
        r = Estimate(d.mean(), cluster_bootstrap_means(d, np.arange(250), 200, k)[1], v * 2 / 3,
                     df).row()
        alone, both = alone + (r["ci_low"] > 0 or r["ci_high"] < 0), both + (t_test(r) < 0.05)
    assert alone > 45 and both <= 24 # 15 of 300 are 5 %, and more than 24 have a chance of 1 %

def test_an_encoder_of_one_run_is_compared_with_the_mean_of_the_others_runs_and_is_not_significant():  # noqa: E501
    a = seeds(3, 0.3)
    one = a[(a.encoder == "x") | (a.seed == 1)]
    x, y = means(one)
    for t in (one, one.assign(seed=one.seed + 10 * (one.encoder == "y"))): # whatever its number
        r = overall(t, "x", "y", MAP)
        assert (r.difference == pytest.approx(x.mean() - y[0])
                and (r.n_seeds_a, r.n_seeds_b) == (3, 1))
        assert (r.seed_variance_known and r.total_ci_low < r.ci_low and np.isnan(r.p_total_holm)
                and r.verdict.endswith("on these checkpoints; y was trained once"))
    # how far runs lie apart, from all that were trained more than once
    known = significance._spreads(a, ["x", "y"], MAP)
    assert overall(one, "x", "y", MAP,
                   variances=known).seed_ci_high - r.difference == pytest.approx(
        st.t.ppf(0.975, 4) * (known["overall", "overall", "macro"][0] * (1 + 1 / 3))**0.5)
    with pytest.raises(UserError, match="no answers of 'z'"): compare_scores(a, "x", "z", MAP)

def test_a_model_without_the_image_is_the_same_run():
    a = seeds(3, 0.2, 0.1)
    x, y = means(a)
    r = overall(a, "x", "y", MAP, paired=True)
    assert [r.difference, r.seed_ci_low, r.seed_ci_high] == pytest.approx(t_interval(x - y))
    def low(t): return t.set_index(["name", "average"]).seed_ci_low["overall", "macro"]
    above = _above_baseline(a, dict(x="y"), MAP, n_resamples=500)
    assert low(above) == pytest.approx(r.seed_ci_low)
    some = dict(excluded=("b",), n_resamples=50) # then its seeds vary in what is left
    assert low(_above_baseline(a, dict(x="y"), MAP, **some)) == pytest.approx(
        low(compare_scores(a, "x", "y", MAP, paired=True, **some)))
    assert overall(a[a.seed == 0], "x", "y", MAP,
                   paired=True).verdict.endswith("points: this checkpoint")
    with pytest.raises(UserError, match="no seed in common"):
        compare_scores(a.assign(seed=a.seed + 10 * (a.encoder == "y")), "x", "y", MAP, paired=True)

def test_of_answers_that_are_all_alike_no_power_is_said():
    a = some(sizes=dict(a=40, b=40, c=40))
    same = pd.concat([a[a.encoder == "x"], a[a.encoder == "x"].assign(encoder="y")])
    for t in (same, pd.concat([same, same.assign(seed=1)])):
        d = compare_scores(t, "x", "y", MAP, n_resamples=50)
        assert (d.min_detectable_diff.isna().all() and (d.difference == 0).all()
                and (d.ci_low == 0).all()
                and (d.ci_high == 0).all())
        assert d.verdict.str.contains("the minimum detectable difference is unknown").all()

def test_no_verdict_where_neither_is_above_its_own_baseline(tmp_path):
    truth = (dict(x=dict(a=0.8, b=0.3, c=0.3), y=dict(a=0.3, b=0.6, c=0.3))
             | {n: dict.fromkeys("abc", 0.3) for n in ("x blind", "y blind")})
    a = _simulate_answers(dict(a=300, b=300, c=300), truth)
    # far ahead of y; so is the same model without the image
    a.loc[(a.subset == "c") & (a.encoder == "x"), "score"] = 1
    a.loc[(a.subset == "c") & (a.encoder == "x blind"), "score"] = 1
    above = _above_baseline(a, {"x": "x blind", "y": "y blind"}, MAP, n_resamples=200)
    t = significance._with_baselines(compare_scores(a, "x", "y", MAP, n_resamples=200),
                                     above).set_index(["name", "average"])
    assert ([t.above_baseline[s, ""] for s in "abc"] == ["x", "y", "neither"]
            and t.p_holm["c", ""] < 0.01)
    assert (t.verdict["c", ""] == t.verdict["doc", "macro"]
            == "no verdict: neither is above its own no-image baseline")
    assert (t.verdict["a", ""].startswith("x leads by")
            and t.verdict["b", ""].startswith("y leads by"))
    told = report(a, tmp_path / "out", MAP, baselines={"x": "x blind", "y": "y blind"},
                  n_resamples=50)["differences answers"]
    assert told.query("a == 'x' and b == 'y' and name "
                      "== 'c'").verdict.item().startswith("no verdict")

def test_what_could_be_shown_is_shown_four_times_in_five():
    truth = dict(x=0.60, y=0.45)
    found = [compare_scores(some(k, dict(a=110), **truth), "x", "y", dict(ocr=["a"]),
                            n_resamples=400).set_index("name") for k in range(60)]
    could = np.mean([t.min_detectable_diff["a"] for t in found])
    seen = np.mean([t.p["a"] < 0.05 for t in found])
    se = could / 2.8
    from scipy.stats import norm
    # the exact test rejects somewhat less often
    assert seen == pytest.approx(norm.cdf(0.15 / se - 1.96), abs=0.17)

def test_power_is_that_of_simulation():
    rng, n, r, gap = np.random.default_rng(0), 120, 0.3, 0.14
    kinds = rng.choice(3, (1500, n), p=[(r + gap) / 2, (r - gap) / 2, 1 - r])
    p = [mcnemar_exact(k == 0, k == 1) for k in kinds]
    assert mcnemar_power(gap, n, r) == pytest.approx(np.mean(np.array(p) < 0.05), abs=0.035)
    g = minimum_detectable_difference(n, r)
    assert (mcnemar_power(g, n, r) == pytest.approx(0.8, abs=1e-3)
            and np.isnan(minimum_detectable_difference(n, 0.01)))

def test_floors_and_what_is_informative():
    right = dict(x=dict(a=0.6, b=0.5, c=0.7), blind=dict(a=0.3, b=0.28, c=0.3),
                 ceiling=dict(a=0.9, b=0.32, c=0.9))
    a = _simulate_answers(dict(a=200, b=200, c=200), right)
    t = informative_subsets(a, "ceiling", "blind", MAP, n_resamples=200)
    by = a.groupby(["encoder", "subset"]).score.mean()
    assert (t.informative.tolist() == [True, False, True]
            and t.oracle_minus_no_image.tolist()
            == pytest.approx((by["ceiling"] - by["blind"]).tolist()))
    g = _above_baseline(a, dict(x="blind"), MAP, excluded=("b",),
                        n_resamples=200).set_index(["name", "average"])
    assert (g.difference["ocr", "macro"] == pytest.approx(by["x", "a"] - by["blind", "a"])
            and g.excluded["ocr", "macro"] == "b")

def test_verdict_of_a_tie_names_the_power():
    r = dict(a="x", b="y", difference=0.01, p_holm=0.5, p_total_holm=np.nan,
             min_detectable_diff=0.15,
             n_questions=100, n_seeds_a=1, n_seeds_b=1, missing="")
    assert (verdict(r)
            == "no significant difference (1.0 points; minimum detectable difference 15.0 points "
               "with 100 questions)")

# --- logs

def lmms_line(k, said, doc=True, **more):
    r = SCHEMAS["VMCBench"](k)
    text = {c: v for c, v in r.items() if c != "image"}
    options = "".join(f"{l}. {r[l]}\n" for l in "ABCD")
    note = dict(question_id=r["index"], category=r["category"], score=int(said[:1] == r["answer"]))
    return dict(doc_id=k, target=r["answer"], filtered_resps=said,
                input=f"Question: q?\nOptions:\n{options}Answer",
                reason=note, average=note) | (dict(doc=text) if doc else {}) | more

def lmms_file(folder, task, rows, model="org__llava"):
    (folder / model).mkdir(exist_ok=True, parents=True)
    p = folder / model / f"20260101_000000_samples_{task}.jsonl"
    p.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return p

@pytest.mark.parametrize("doc", [True, False])
def test_lmms_eval_of_vmcbench(tmp_path, doc):
    rows = [lmms_line(0, "A", doc), lmms_line(1, ["C"], doc), lmms_line(2, "", doc, resps=[["x"]]),
            lmms_line(3, "(D) fourth", doc)]
    rows[3]["average"]["score"] = 1
    a, bad = read_log(lmms_file(tmp_path, "vmcbench", rows), seed=2)
    assert (a.score.tolist() == [1, 0, 0, 1] and a.question_id.tolist() == [5, 6, 7, 8]
            and len(bad) == 0)
    assert (a.benchmark.unique().tolist() == ["VMCBench"]
            and a.subset.unique().tolist() == ["OCRVQA"])
    assert (a.encoder.unique().tolist() == ["org__llava"] and a.seed.unique().tolist() == [2]
            and a.answer.tolist() == list("ABCD"))
    assert [len(o) for o in a.options] == [4] * 4 and a.letter.tolist()[:2] == ["A", "C"]
    strict = read_log(lmms_file(tmp_path, "vmcbench", rows), rule="letter").answers
    assert strict.score.tolist() == [1, 0, 0, 1]

def test_a_noted_coin_toss_is_kept_unless_scored_anew(tmp_path):
    rows = [lmms_line(k, "no idea") for k in range(4)]
    rows[2]["average"]["score"] = rows[2]["reason"]["score"] = 1 # the coin was lucky
    p = lmms_file(tmp_path, "vmcbench", rows)
    assert (read_log(p).answers.score.sum() == 1
            and read_log(p, rule="letter").answers.score.sum() == 0)
    assert _answer_coverage(read_log(p).answers).n_unparsed.item() == 4

NOTES = { # task -> (benchmark, what the tool notes, the score meant)
    "mme": ("MME_P",
            lambda k: dict(mme_perception_score=dict(question_id=f"{k // 2}.png", category="color",
                                                     score=1.0)), 1),
    "chartqa": ("ChartQA", lambda k: dict(relaxed_overall=1.0, relaxed_human_split=1.0), 1),
    "ocrbench": ("OCRBench",
                 lambda k: dict(ocrbench_accuracy=dict(question_type="Regular", score=0)), 0),
    "textvqa_val": ("TextVQA",
                    lambda k: dict(exact_match=0.3, submission=dict(question_id=k, answer="x")),
                    0.3),
    "docvqa_val": ("DocVQA", lambda k: dict(anls=0.75), 0.75),
    "gqa": ("GQA", lambda k: dict(exact_match=1.0), 1),
    "seedbench": ("SEED_I",
                  lambda k: dict(seed_image=dict(pred="A", answer="A", question_id="x"),
                                 seed_all=dict(pred="A", answer="A", question_id="x")), 1),
    "mmvp": ("MMVP",
             lambda k: dict(mmvp_accuracy=dict(index=k, pair_index=k // 2, pred="A",
                                               is_correct=True)), 1),
    "cv_bench_2d": ("CVBench_2D",
                    lambda k: dict(cv_bench_acc=dict(id=k, type="2D", task="Count", source="COCO",
                                                     is_correct=False)), 0),
    "mathvista_testmini_cot": ("MathVista_M",
                               lambda k: dict(llm_as_judge_eval=dict(question_id=str(k),
                                                                     true_false=True, answer="4")),
                               1),
    "some_new_task": ("some_new_task", lambda k: dict(acc=0.5), 0.5)}

@pytest.mark.parametrize("task", NOTES)
def test_lmms_eval_of_other_tasks(tmp_path, task):
    name, note, score = NOTES[task]
    rows = [dict(doc_id=k, target="(A)" if task == "mmvp" else "x", filtered_resps="x",
                 input="q?") | note(k) for k in range(4)]
    a, bad = read_log(lmms_file(tmp_path, task, rows))
    assert ((a.benchmark == name).all() and a.score.tolist() == [score] * 4 and len(bad) == 0
            and a.question_id.is_unique)
    if task in ("mme", "mmvp"):
        assert a.pair_id.nunique() == 2
        assert number(bootstrap_summary(a.assign(encoder="x"), CAMBRIAN, allow_missing=True,
                                        n_resamples=20), name, "") == 1

def test_logs_of_mmmu_without_a_score_are_scored_by_the_rule(tmp_path):
    def row(k, said, right, options):
        return dict(doc_id=k, target=right, filtered_resps=said, input=f"q\n{options}",
            mmmu_acc=dict(id=f"validation_Art_{k}", subdomain="Art", question_type="m",
                          answer=right, parsed_pred=[said]))
    rows = [row(0, "B", "B", "A. x\nB. y"), row(1, "A", "B", "A. x\nB. y"),
            row(2, "10.2", "10", "")]
    a = read_log(lmms_file(tmp_path, "mmmu_val", rows)).answers
    assert a.score.tolist() == [1, 0, 1] and a.subset.tolist() == ["Art"] * 3

def test_a_coin_that_a_tool_tossed_for_a_blank_answer_counts_nothing(tmp_path):
    row = lmms_line(0, "", doc=False)
    row["average"]["score"] = row["reason"]["score"] = 1
    a = read_log(lmms_file(tmp_path, "vmcbench", [row])).answers
    assert a.score.item() == 0 and _answer_coverage(a).n_empty.item() == 1

def test_broken_lines_of_a_log_are_listed(tmp_path, capsys):
    rows = [lmms_line(0, "A"), "{broken", json.dumps(dict(doc_id=3)), lmms_line(1, "B")]
    a, bad = read_log(lmms_file(tmp_path, "vmcbench", rows))
    assert (len(a) == 2 and bad.row.tolist() == [1, 2] and "not JSON" in bad.reason[0]
            and "2 of 4 rows" in capsys.readouterr().err)
    with pytest.raises(UserError, match="no answer that can be used"):
        read_log(lmms_file(tmp_path, "mme", ["{"]))
    with pytest.raises(UserError, match="no log of lmms-eval"):
        read_log(lmms_file(tmp_path, "x", [lmms_line(0, "A")]).rename(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match="is not a file"): read_log(tmp_path / "none.jsonl")

def test_a_log_is_told_pictures_and_refused_for_another_split(tmp_path):
    q = load_questions("VMCBench", source=saved("VMCBench", tmp_path)).questions
    p = lmms_file(tmp_path, "vmcbench", [lmms_line(k, "A", doc=False) for k in range(4)])
    a = read_log(p, questions=q).answers
    assert a.cluster.tolist() == q["cluster"][:4]
    with pytest.raises(UserError, match="unknown questions: 5, 6"):
        read_log(p, questions=q.select(range(2, 8)))
    with pytest.raises(UserError, match="different correct answer in the log"):
        read_log(lmms_file(tmp_path, "vmcbench", [lmms_line(0, "A", target="C", doc=False)]),
                 questions=q)

def vlm_rows(n=4, **more): # index, question, options, answer, category, prediction
    return [dict(index=k, question="q?", A="None", B="2", C="3", D="4", answer="ABCD"[k % 4],
                 category="OCRVQA", prediction="A.") | more
            for k in range(n)]

@pytest.mark.parametrize("kind", ["tsv", "csv", "json", "xlsx"])
def test_vlmevalkit(tmp_path, kind):
    if kind == "xlsx": pytest.importorskip("openpyxl")
    t, p = pd.DataFrame(vlm_rows()), tmp_path / f"llava_v1.5_7b_VMCBench_DEV.{kind}"
    dict(tsv=lambda: t.to_csv(p, sep="\t", index=False), csv=lambda: t.to_csv(p, index=False),
         json=lambda: p.write_text(t.to_json(orient="records")),
         xlsx=lambda: t.to_excel(p, index=False))[kind]()
    a, bad = read_log(p)
    assert (a.encoder.unique().tolist() == ["llava_v1.5_7b"]
            and a.benchmark.unique().tolist() == ["VMCBench"])
    assert (a.score.tolist() == [1, 0, 0, 0] and a.options[0][0] == "None"
            and a.subset.tolist() == ["OCRVQA"] * 4)

def test_vlmevalkit_hits_are_taken_or_scored_anew(tmp_path):
    p = tmp_path / "m_VMCBench_TEST_result.tsv"
    tsv(p, vlm_rows(hit=1))
    assert (read_log(p).answers.score.tolist() == [1] * 4
            and read_log(p, rule="letter").answers.score.tolist() == [1, 0, 0, 0])
    p = tmp_path / "m_MMBench_DEV_EN_openai_result.tsv"
    rows = vlm_rows(4, hit=1)
    for r, index in zip(rows, (7, 1_000_007, 8, 1_000_008)): r["index"] = index
    rows[1]["hit"] = 0
    a = read_log(tsv(p, rows) and p).answers
    assert a.pair_id.tolist() == ["7", "7", "8", "8"]
    assert number(bootstrap_summary(a.assign(encoder="x"), CAMBRIAN, allow_missing=True,
                                    n_resamples=20), "MMBench", "") == 0.5

def test_vlmevalkit_pairs_and_faults(tmp_path):
    p = tmp_path / "m_MMVP.tsv"
    rows = [dict(r, question=f"q{r['index'] // 2}", C="", D="", answer="AB"[r["index"] % 2])
            for r in vlm_rows(4)]
    assert (read_log(tsv(p, rows) and p).answers.pair_id.tolist()
            == ["pair 1", "pair 1", "pair 2", "pair 2"])
    tsv(p, rows[1:])
    with pytest.raises(UserError, match="no partner"): read_log(p)
    tsv(tmp_path / "m_VMCBench_DEV.tsv",
        [{k: v for k, v in r.items() if k != "prediction"} for r in vlm_rows()])
    with pytest.raises(UserError, match="lacks the columns prediction"):
        read_log(tmp_path / "m_VMCBench_DEV.tsv")
    tsv(tmp_path / "results.tsv", vlm_rows())
    with pytest.raises(UserError, match="no result of VLMEvalKit"):
        read_log(tmp_path / "results.tsv")
    bad = vlm_rows(); bad[2]["index"] = "x"
    tsv(tmp_path / "m_VMCBench_DEV.tsv", bad)
    assert read_log(tmp_path / "m_VMCBench_DEV.tsv").skipped.row.tolist() == [2]

def test_a_workbook_without_openpyxl_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None) # as if it were not installed
    (tmp_path / "m_VMCBench_DEV.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="pip install openpyxl"):
        read_log(tmp_path / "m_VMCBench_DEV.xlsx")

@pytest.mark.parametrize("said, letter, how", [
    ("The answer is a dog", "D", "mentioned"), ("Answer: A dog", "D", "mentioned"),
    ("the answer is (b)", "B", "stated"),
    ("Option A is wrong, so the answer is B", "B", "stated"),
    ("A) no. B) yes, this one", "B", "marked"), ("\\boxed{two}", "B", "boxed"),
    ("No cat; it is a big dog, I think", "D", "mentioned"), ("catalogue", None, "unread"),
    ("a cat or a dog", None, "unread"),
    ("[C]", "C", "letter"), ("<think>the cat? (A)</think>(B)", "B", "letter"),
    ("E", None, "unread"), ("?", None, "unread"),
    ("Failed to obtain answer via API. ", None, "failed"), (float("nan"), None, "empty"),
    ("  ", None, "empty"), ("I think B", "B", "alone")])
def test_how_an_answer_is_read(said, letter, how):
    assert reading._reading(said, dict(A="cat", B="two", C="API", D="dog")) == (letter, how)

def test_an_option_within_another_is_not_it():
    q = dict(A="red", B="dark red", C="3", D="3.5")
    assert [reading._reading(s, q)[0]
            for s in ("It is dark red.", "it is the red one", "about 3.5 m", "3",
                      "13 of 35")] == ["B", "A", "D", "C", None]
    assert reading._reading("=", {"A": "<", "B": "="}) == ("B", "option text")

def failing(model, n_failed, n=24):
    def said(k):
        return ("Failed to obtain answer via API." if k < n_failed else "" if k < 1.5 * n_failed
                else "ABCD"[k % 4])
    return [r | dict(prediction=said(r["index"]), C="API", hit=1) for r in vlm_rows(n)]

def test_calls_that_failed_are_counted_and_no_verdict_is_given_over_them(tmp_path, capsys):
    from ccd.cli import main
    for m, k in (("m1", 6), ("m2", 0)): tsv(tmp_path / f"{m}_VMCBench_DEV.tsv", failing(m, k))
    logs = [str(tmp_path / f"{m}_VMCBench_DEV.tsv") for m in ("m1", "m2")]
    main(["vqa", *logs, "--out", str(tmp_path / "out"), "--allow-missing-subsets", "--n-resamples",
          "50"])
    said = capsys.readouterr().out
    assert "m1 (seed 0), VMCBench: 24 questions; read as letter 15; 3 empty, scored 0; 6 failed, scored 0" in said  # noqa: E501
    assert ("m1 and m2, ocr (macro): no verdict: 9 answers failed or are empty" in said
            and "leads" not in said)
    a = pd.read_parquet(tmp_path / "out/answers.parquet")
    # whatever the tool noted
    assert a.score[a.encoder == "m1"].tolist() == [0] * 9 + [1] * 15 and a.letter[:9].isna().all()
    main(["vqa", *logs, "--out", str(tmp_path / "both"), "--allow-missing-subsets",
          "--intersect-questions", "--n-resamples", "50"])
    both = pd.read_csv(tmp_path / "both/differences_vmcbench.csv").query("name == 'OCRVQA'")
    assert (both.n_questions.item() == 15
            and both.verdict.item().startswith("no significant difference"))
    with pytest.raises(UserError, match="no question has an answer"):
        report(a[a.encoder == "m1"].head(9), tmp_path / "none", intersect=True, n_resamples=20)

def test_a_log_of_one_benchmark_prints_its_score(tmp_path, capsys):
    from ccd.cli import main
    rows = [dict(doc_id=k, target="x", filtered_resps="x", input="q?", exact_match=float(k < 3))
            for k in range(4)]
    main(["vqa", str(lmms_file(tmp_path, "gqa", rows)), "--out", str(tmp_path / "out"),
          "--n-resamples", "50"])
    assert "org__llava (seed 0), GQA: 75.0 (" in capsys.readouterr().out

@pytest.mark.parametrize("file, want", [
    ("a_b_VMCBench_DEV.xlsx", ("a_b", "VMCBench_DEV")),
    ("qwen-vl_MMVP_gpt-4o_result.xlsx", ("qwen-vl", "MMVP")),
    ("m_MMBench_DEV_EN_V11.xlsx", ("m", "MMBench_DEV_EN_V11")),
    ("m_MMBench_DEV_EN_CN.xlsx", ("m", "MMBench_DEV_EN_CN")),
    ("m_AI2D_TEST_NO_MASK_exact_matching_result.xlsx", ("m", "AI2D_TEST_NO_MASK")),
    ("m_VMCBench_DEV_v2.tsv", ("m", "VMCBench_DEV_v2")),
    ("m_MME-RealWorld.xlsx", ("", "")),
    ("my_model/my_model_NewBench.xlsx", ("my_model", "NewBench")),
    ("my_model/T20260101_Gabc/my_model_MME.xlsx", ("my_model", "MME")), ("results.json", ("", ""))])
def test_a_name_that_begins_like_another_is_another_benchmark(file, want):
    assert statistics_logs._vlmevalkit_name("logs/" + file) == want

def test_answers_to_another_benchmark_are_not_those_of_its_namesake(tmp_path):
    with pytest.raises(UserError, match="no rule known for VMCBench_DEV_v2"):
        read_log(tsv(p := tmp_path / "m_VMCBench_DEV_v2.tsv", vlm_rows()) or p)
    a = read_log(tsv(p := tmp_path / "m_MMBench_DEV_EN_V11.tsv", vlm_rows(hit=1)) or p).answers
    assert (a.benchmark == "MMBench_DEV_EN_V11").all() and (a.pair_id == "").all()
    both = pd.concat([a,
                      read_log(tsv(p := tmp_path / "m_MMBench_DEV_EN.tsv", vlm_rows(hit=1))
                               or p).answers])
    assert (set(report(both, tmp_path / "out", allow_missing=True, n_resamples=20))
            >= {"summary Cambrian-1", "summary MMBench_DEV_EN_V11"})

def test_a_folder_of_vlmevalkit_is_read_once_the_newest(tmp_path, capsys):
    home = tmp_path / "m1"
    for when, n in (("T20260101_Gaaa", 3), ("T20260201_Gbbb", 4)):
        (home / when).mkdir(parents=True)
        tsv(home / when / "m1_VMCBench_DEV.tsv", vlm_rows(n))
        tsv(home / when / "m1_VMCBench_DEV_openai_result.tsv", vlm_rows(n, hit=1))
    # as the tool leaves it
    (home / "m1_VMCBench_DEV.tsv").symlink_to(home / "T20260201_Gbbb/m1_VMCBench_DEV.tsv")
    (home / "m1_VMCBench_DEV_acc.csv").write_text("split,Overall\nnone,0.5\n")
    (home / "m1_VMCBench_DEV.pkl").write_bytes(b"x")
    lmms_file(tmp_path, "gqa", [dict(doc_id=0, target="x", filtered_resps="x", exact_match=1)],
              "m1")
    present = sum(p.is_file() for p in tmp_path.rglob("*"))
    t = report(tmp_path, tmp_path / "out", allow_missing=True, n_resamples=20)
    assert t["answers"].groupby("benchmark").score.agg(["size", "mean"]).to_dict("index") == {
        "VMCBench": dict(size=4, mean=1), "GQA": dict(size=1, mean=1)}
    left = t["skipped"].reason.str.partition(":")[0].value_counts().to_dict()
    assert left == {"another run": 4, "no log of answers": 2} and sum(left.values()) == present - 2
    assert f"{present - 2} files are no logs to read" in capsys.readouterr().err

def workbook(rows):
    f = io.BytesIO(); pd.DataFrame(rows).to_excel(f, index=False); return f.getvalue()

@pytest.mark.parametrize("name, data, why", [
    ("m_VMCBench_DEV.xlsx", lambda: workbook(vlm_rows())[:2000],
     "m_VMCBench_DEV.xlsx cannot be read as xlsx, is it whole"),
    ("m_VMCBench_DEV.json", lambda: b'[{"index": 1', "m_VMCBench_DEV.json cannot be read as json"),
    ("m_VMCBench_DEV.json", lambda: b'7', "holds int: expected a list of objects"),
    ("m_VMCBench_DEV.tsv", lambda: b"", "m_VMCBench_DEV.tsv is empty"),
    ("m_VMCBench_DEV.tsv",
     lambda: pd.DataFrame(vlm_rows(question="caf\u00e9")).to_csv(sep="\t",
                                                                 index=False).encode("latin-1"),
     "4 the row is not UTF-8; the first is row 0"),
    ("m_VMCBench_DEV.tsv",
     lambda: pd.DataFrame(vlm_rows()).to_csv(sep="\t", index=False).encode("utf-16"),
     "m_VMCBench_DEV.tsv"),
    ("x_samples_gqa.jsonl", lambda: "{\"doc_id\": 0, \"target\": \"caf\u00e9\"}".encode("latin-1"),
     "1 the line is not UTF-8; the first is row 0"),
    ("x_samples_gqa.jsonl", lambda: b"7\n[]\n",
     "1 the line is no object but int; 1 the line is no object but list"),
    ("x_samples_gqa.jsonl", lambda: b"", "it has no rows"),
    ("x_samples_gqa.jsonl", lambda: b'{"doc_id": 0, "filtered_resps": "A", "exact_match": NaN}',
     "1 the noted score is nan: expected 0 to 1"),
    ("x_samples_gqa.jsonl", lambda: b'{"doc_id": "x", "filtered_resps": "A", "exact_match": 1}',
     "invalid literal")])
def test_a_broken_log_names_the_file_and_the_row(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data())
    with pytest.raises(UserError) as e:
        report(tmp_path / name, tmp_path / "out", allow_missing=True, n_resamples=20)
    assert why in str(e.value) and name in str(e.value)

@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "json"])
def test_a_byte_order_mark_is_no_part_of_a_log(tmp_path, kind):
    t, name = (pd.DataFrame(vlm_rows()),
               "x_samples_gqa.jsonl" if kind == "jsonl" else f"m_VMCBench_DEV.{kind}")
    text = dict(tsv=lambda: t.to_csv(sep="\t", index=False), csv=lambda: t.to_csv(index=False),
                json=lambda: t.to_json(orient="records"),
                jsonl=lambda: json.dumps(dict(doc_id=0, target="x", filtered_resps="x",
                                              exact_match=1)))[kind]()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    log = read_log(tmp_path / name)
    assert len(log.answers) == (1 if kind == "jsonl" else 4) and not len(log.skipped)

def test_half_a_character_of_an_answer_is_written_all_the_same(tmp_path):
    p = lmms_file(tmp_path, "gqa",
                  ['{"doc_id": 0, "target": "x", "filtered_resps": "x \\ud83d", "exact_match": 1}'])
    assert report(p, tmp_path / "out", n_resamples=20)["answers"].prediction[0] == "x \ufffd"

@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_what_a_row_holds_beside_its_answer_is_not_kept(tmp_path, kind):
    p, long = (tmp_path / ("x_samples_gqa.jsonl" if kind == "jsonl" else "m_VMCBench_DEV.tsv"),
               "x" * 100_000)
    with open(p, "w") as f:
        if kind == "tsv": f.write("index\tquestion\tA\tB\tanswer\tprediction\timage\n")
        for k in range(300):
            f.write(json.dumps(dict(doc_id=k, target="x", filtered_resps="x", input=long,
                                    exact_match=1)) + "\n" if kind == "jsonl" else
                    f"{k}\tq?\ta\tb\tA\tA\t{long}\n")
    read_log(p) # what is imported and compiled once
    tracemalloc.start()
    try: n, peak = len(read_log(p).answers), tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert n == 300 and peak < 4e6 < p.stat().st_size / 7 # a few rows and the answers

@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_questions_in_other_encodings(tmp_path, encoding):
    rows = [{k: v
             for k, v in question(k, image=base64.b64encode(picture(k)).decode(),
                                  question="caf\u00e9").items()
             if k not in ("item_id", "cluster", "pair_id", "split")} for k in range(4)]
    p = tmp_path / "VMCBench_DEV.tsv"
    p.write_bytes(pd.DataFrame(rows).to_csv(sep="\t", index=False).encode(encoding))
    if encoding == "utf-8-sig":
        assert load_questions("VMCBench", source=str(p)).questions["question"][0] == "caf\u00e9"
    else:
        with pytest.raises(UserError, match="line 2: not UTF-8"):
            load_questions("VMCBench", source=str(p))

def test_report_of_two_models_and_two_tools(tmp_path):
    said = {m: [lmms_line(k, "ABCD"[k % 4] if k < n else "B", doc=False) for k in range(8)]
            for m, n in (("good", 8), ("poor", 2))}
    for m, rows in said.items(): lmms_file(tmp_path / "logs", "vmcbench", rows + ["{"], m)
    tables = report(tmp_path / "logs", tmp_path / "out", allow_missing=True, n_resamples=200)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"answers.parquet", "skipped.csv", "coverage.csv", "read.csv",
                     "summary_vmcbench.csv", "conventions_vmcbench.csv",
                     "differences_vmcbench.csv", "maps.json"}
    assert json.loads((tmp_path / "out" / "maps.json").read_text())["VMCBench"] == VMCBENCH
    t = pd.read_csv(tmp_path / "out" / "summary_vmcbench.csv")
    assert (t[(t.name == "OCRVQA") & (t.encoder == "good")].score.item() == 1
            and len(tables["skipped"]) == 2)
    d = tables["differences VMCBench"]
    assert (d[d.name == "OCRVQA"].difference.item()
            == pytest.approx(1 - tables["answers"][lambda x: x.encoder == "poor"].score.mean()))
    assert len(pd.read_parquet(tmp_path / "out" / "answers.parquet")) == 16
    again = report(tmp_path / "out", tmp_path / "again", allow_missing=True, n_resamples=200)
    assert (again["summary VMCBench"].score.tolist()
            == pytest.approx(tables["summary VMCBench"].score.tolist(), nan_ok=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no \\*_samples_"):
        report(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(UserError, match="is not a file"):
        report(tmp_path / "nothing.jsonl", tmp_path / "x")

def test_a_report_of_answers_from_elsewhere_uses_their_own_map(tmp_path):
    tables = report(some(), tmp_path / "out", n_resamples=50)
    assert set(tables["summary made"].name) == {"a", "b", "c", "made", "overall"}

def test_equal_cluster_names_of_two_benchmarks_are_two_clusters():
    a = some(sizes=dict(a=30), x=0.5)
    both = pd.concat([a.assign(benchmark=n, subset=n) for n in ("GQA", "AI2D")])
    s = aggregation.aligned_scores(both, dict(v=["GQA", "AI2D"]))
    assert len(set(s.cluster)) == 60 and [len(w) for w, _ in aggregation._groups(s)] == [1, 1]

def test_a_draw_without_a_subset_does_not_spoil_the_interval():
    a = some(sizes=dict(a=60, b=3, c=3), x=0.5)
    # b and c hang on two clusters of a
    a["cluster"] = np.where(a.subset == "a", a.question_id, a.question_id % 2).astype(str)
    t = bootstrap_summary(a, MAP, n_resamples=400)
    assert t[["ci_low", "ci_high"]].notna().all().all()

def test_logs_may_be_named_with_encoder_and_seed(tmp_path):
    paths = []
    for encoder, n in (("clip", 8), ("dino", 3)):
        for seed in range(3):
            rows = [lmms_line(k, "ABCD"[k % 4] if k < n - seed else "B", doc=False)
                    for k in range(8)]
            paths.append(
                f"{encoder}@{seed}={lmms_file(tmp_path / encoder, 'vmcbench', rows, f'run{seed}').parent}")  # noqa: E501
    t = report(paths, tmp_path / "out", allow_missing=True, n_resamples=100)
    assert (sorted(set(zip(t["answers"].encoder, t["answers"].seed)))
            == [(e, k) for e in ("clip", "dino") for k in range(3)])
    assert (t["differences VMCBench"][["n_seeds_a", "n_seeds_b"]] == 3).all(axis=None)

def test_a_benchmark_of_several_sources_is_tested_as_it_is_averaged():
    a = some(sizes=dict(ADE20K=300, COCO=20), x=dict(ADE20K=0.5, COCO=0.95),
             y=dict(ADE20K=0.55, COCO=0.3))
    a = a.assign(benchmark="CVBench_2D")
    r = compare_scores(a, "x", "y", CAMBRIAN, allow_missing=True,
                       n_resamples=2000).set_index("name").loc["CVBench_2D"]
    w = a.pivot(index=["subset", "question_id"], columns="encoder", values="score")
    weight = np.repeat([1 / 300, 1 / 20], [300, 20])
    assert (r.p
            == pytest.approx(sign_flip(w.x.values * weight, w.y.values * weight, np.arange(320),
                                       20_000, 3), abs=0.02))
    assert r.p < 0.05 < mcnemar_exact(w.x.values == 1, w.y.values == 1)

def test_a_category_of_unlike_benchmarks_weighs_each_alike():
    a = some(sizes=dict(ADE20K=40, COCO=40, RealWorldQA=40),
             x=dict(ADE20K=0.6, COCO=0.6, RealWorldQA=0.35),
             y=dict(ADE20K=0.4, COCO=0.4, RealWorldQA=0.65))
    a["benchmark"] = np.where(a.subset == "RealWorldQA", "RealWorldQA", "CVBench_2D")
    w = a.pivot(index=["subset", "question_id"], columns="encoder", values="score")
    d = (w.x - w.y).groupby("subset").mean()
    weight = np.repeat([1 / 4, 1 / 4, 1 / 2], 40) # ADE20K, COCO, RealWorldQA
    t = compare_scores(a, "x", "y", CAMBRIAN, allow_missing=True,
                       n_resamples=4000).set_index(["name", "average"])
    r = t.loc[("Vision-Centric", "macro")]
    assert r.difference == pytest.approx((d["ADE20K"] / 2 + d["COCO"] / 2 + d["RealWorldQA"]) / 2)
    p, alike = (sign_flip(w.x.values * v, w.y.values * v, np.arange(120), 20_000, 3)
                for v in (weight, weight * 0 + 1))
    assert r.p == pytest.approx(p, abs=0.03) and abs(p - alike) > 0.06

def test_the_maps_are_those_of_the_published_tables():
    from ccd.vqa.published.tables import categories, load_published_table
    known = load_published_table("benchmarks")
    other = {n.strip(): r.benchmark
             for r in known[known.suite == "cambrian"].fillna("").itertuples()
             for n in (r.benchmark, *r.also.split(";"))}
    assert {c: [other[b] for b in bs] for c, bs in CAMBRIAN.items()} == categories("cambrian")
    printed = dict(general="General", reason="Reasoning", ocr="OCR", doc="Doc & Chart")
    assert {printed[c]: bs for c, bs in VMCBENCH.items()} == categories("vmcbench")
