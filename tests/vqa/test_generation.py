"""Answers in words: against a plain loop without a cache, alone and in a batch, and scored by the
rule of their benchmark."""
from dataclasses import replace
import pytest, torch
from datasets import Dataset
from PIL import Image
from ccd.files import UserError
from ccd.encoders.loading import load
from ccd.vqa.benchmarks.questions import _schema
from ccd.vqa.benchmarks.suite import BENCHMARKS
from ccd.vqa.llava import answering, conversations, features, generation, model as llava_model
from ccd.vqa.llava.settings import vlm_preset
from ccd.vqa.llava.training import _small

SETTINGS = replace(vlm_preset("smoke"), context=160)
TEXTS = ["What is in the picture?", "How many red hearts are there? three 42 yes no"] * 5

@pytest.fixture(scope="module")
def vlm(): # its weights are drawn, so that it says more than one thing
    tokenizer = conversations._train_bpe(TEXTS, 320)
    encoder = load(features._spec_with_layer("random:0", SETTINGS))
    net = llava_model._build_llava(_small(SETTINGS, tokenizer), tokenizer, 192, tokens=36)
    made = llava_model.Vlm(net, tokenizer, SETTINGS, encoder).eval()
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(net.lm_head.weight.shape, generator=draw) # else it repeats what it reads
    net.lm_head.weight = torch.nn.Parameter(head)
    return made

@pytest.fixture(scope="module")
def images(vlm): # image tokens of three images
    return torch.randn(3, vlm.tokens, 192, generator=torch.Generator().manual_seed(1))

ROWS = [dict(question=q) for q in ("Is it?", "How many red hearts are there?", "What is it?")]

@torch.no_grad()
def tokens_of_a_plain_loop(vlm, prompt, image, longest):
    ids = [int(token) for token in prompt.ids]
    for _ in range(longest):
        hidden = vlm.read(torch.tensor([ids]), None if image is None else image[None])
        ids.append(int(vlm.net.lm_head(hidden[:, -1]).argmax()))
        if ids[-1] == prompt.end: break
    return ids[len(prompt.ids):]

def read(vlm, ids): return vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()

@pytest.mark.parametrize("pictured", [True, False])
def test_the_answer_is_that_of_a_plain_loop_without_a_cache(vlm, images, pictured):
    prompts = generation._open_prompts(vlm, ROWS, pictured, "", 12)
    assert len({len(prompt.ids) for prompt in prompts}) > 1 # so there is padding
    want = [read(vlm, tokens_of_a_plain_loop(vlm, prompt, image if pictured else None, 12))
            for prompt, image in zip(prompts, images)]
    assert len(set(want)) == 3 and all(want)
    said = generation._generate(vlm, prompts, images if pictured else None, 12)
    assert said == want

def test_an_answer_ends_where_the_model_ends_its_turn(vlm, images):
    prompt = generation._open_prompts(vlm, ROWS[:1], True, "", 12)[0]
    ids = tokens_of_a_plain_loop(vlm, prompt, images[0], 12)
    assert len(ids) == 12
    stop = next(k for k in range(3, 12) if ids[k] not in ids[:k])
    said = generation._generate(vlm, [prompt._replace(end=ids[stop])], images[:1], 12)
    assert said in ([read(vlm, ids[:stop + 1])], [read(vlm, ids[:stop])])

def test_a_question_without_room_for_an_answer_has_none(vlm):
    long = dict(question="How many red hearts are there? " * 40)
    prompts = generation._open_prompts(vlm, [ROWS[0], long], True, "", 12)
    assert prompts[0] is not None and prompts[1] is None

def test_the_longest_answer_leaves_room_for_the_question():
    assert generation._longest_answer("DocVQA", 2048) == 128
    assert generation._longest_answer("MathVista_M", 2048) == 512
    assert generation._longest_answer("MathVista_M", 8192) == 1024
    assert generation._longest_answer("my own", 100) == 25

# --- questions of a benchmark

def questions(*rows):
    base = dict(A="", B="", C="", D="", category="all", cluster="c", pair_id="", split="test",
                answers=[])
    made = [base | dict(index=index, item_id=f"i{index}", image=Image.new("RGB", (40, 40),
                        (index * 60, 90, 30))) | row for index, row in enumerate(rows)]
    return Dataset.from_list(made, features=_schema(4))

MIXED = questions(dict(question="How many?", answer="42", answers=["42"]),
                  dict(question="Which one?", A="red", B="blue", answer="B", answers=["blue"]),
                  dict(question="What is it?", answer="heart", answers=["heart", "a heart"]))

def test_only_questions_without_options_are_answered_in_words(vlm, tmp_path):
    table = answering.answer_questions(vlm, MIXED, "letters", benchmark="MMMU_V", cache=tmp_path)
    assert [p is None for p in table.p_options] == [True, False, True]
    assert table.prediction[1] in ("A", "B") and sum(table.p_options[1]) == pytest.approx(1)
    words = answering.answer_questions(vlm, MIXED, "words", benchmark="MMMU_V", cache=tmp_path)
    assert words.p_options.isna().all()
    assert words.prediction[[0, 2]].tolist() == table.prediction[[0, 2]].tolist()

def test_parts_that_were_answered_are_kept(vlm, tmp_path, monkeypatch):
    first = answering.answer_questions(vlm, MIXED, benchmark="ChartQA", folder=tmp_path / "parts",
                                       cache=tmp_path)
    monkeypatch.setattr(answering, "_write_answers", None) # not called again
    again = answering.answer_questions(vlm, MIXED, benchmark="ChartQA", folder=tmp_path / "parts",
                                       cache=tmp_path)
    assert first.drop(columns="p_options").equals(again.drop(columns="p_options"))

@pytest.mark.parametrize("said, name, right", [("42.9", "ChartQA", 1), ("45", "ChartQA", 0),
                                               ("it is 42", "OCRBench", 1), ("43", "OCRBench", 0),
                                               ("42", "GQA", 1), ("42 hearts", "GQA", 0)])
def test_what_is_written_is_scored_by_the_rule_of_the_benchmark(vlm, tmp_path, monkeypatch, said,
                                                                name, right):
    monkeypatch.setattr(generation, "_generate", lambda vlm, prompts, *_: [said] * len(prompts))
    table = answering.answer_questions(vlm, MIXED.select([0]), benchmark=name, cache=tmp_path)
    assert table.prediction.tolist() == [said] and table.score.tolist() == [right]

def test_the_prompt_is_that_of_the_benchmark():
    asked = {name: generation._ask_open(dict(question="How many?"), SETTINGS, name)
             for name in (*BENCHMARKS, "my own")}
    assert asked["ChartQA"].endswith("Answer the question using a single number or phrase.")
    assert asked["DocVQA"].endswith("Give the short answer directly.")
    assert asked["RealWorldQA"] == asked["my own"] == "How many?"

def test_one_option_is_no_choice_and_words_need_a_rule(vlm, tmp_path):
    one = questions(dict(question="Which one?", A="red", answer="A"))
    with pytest.raises(UserError, match="1 of 1 questions have one option"):
        answering.answer_questions(vlm, one, benchmark="GQA", cache=tmp_path)
    with pytest.raises(UserError, match="2 of 3 questions have no options.*name of a benchmark"):
        answering.answer_questions(vlm, MIXED, benchmark="my own", cache=tmp_path)
