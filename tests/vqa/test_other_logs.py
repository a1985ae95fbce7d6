"""Logs of lm-evaluation-harness and Inspect, and tables of scores: read, matched by id, compared in
pairs; what is no score is skipped and counted."""
import json, zipfile
import numpy as np, pandas as pd, pytest
from ccd.cli import main
from ccd.files import UserError
from ccd.vqa.statistics import other_logs
from ccd.vqa.statistics.logs import read_log

def harness(path, rows): # as lm_eval --log_samples writes it
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dict(
        doc_id=k, doc=dict(question=f"q{k}"), target="4", arguments={}, resps=[["x"]],
        filtered_resps=[said], filter=way, metrics=["exact_match"], doc_hash="a", prompt_hash="b",
        target_hash="c", exact_match=score)) + "\n" for k, said, way, score in rows))
    return path

def sample(name, value, epoch=1, **more):
    return dict(id=name, epoch=epoch, input="2 + 2?", target="4", metadata={},
                output=dict(completion="It is 4."), scores=dict(match=dict(value=value))) | more

HEAD = dict(version=2, status="success", eval=dict(task="sums", model="hub/small-clip"))

def inspect_json(path, samples):
    path.write_text(json.dumps(HEAD | dict(samples=samples)))
    return path

def inspect_eval(path, samples):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(HEAD))
        for number, one in enumerate(samples):
            archive.writestr(f"samples/{number}.json", json.dumps(one))
    return path

def test_lm_evaluation_harness_by_its_first_filter(tmp_path):
    file = harness(tmp_path / "clip/samples_gsm8k_2026-09-01T12-00-00.123456.jsonl",
                   [(0, "4", "strict-match", 1.0), (0, "4", "flexible-extract", 0.0),
                    (1, "5", "strict-match", 0.0), (1, "4", "flexible-extract", 1.0)])
    log = read_log(file)
    assert log.answers.score.tolist() == [1, 0] and log.answers.question_id.tolist() == [0, 1]
    assert set(log.answers.benchmark) == {"gsm8k"} and set(log.answers.encoder) == {"clip"}
    assert log.skipped.reason.tolist() == ["of the filter flexible-extract: answers by "
                                           "strict-match are read"] * 2

@pytest.mark.parametrize("write, name", [(inspect_json, "log.json"), (inspect_eval, "log.eval")])
def test_inspect(write, name, tmp_path):
    log = read_log(write(tmp_path / name, [
        sample("a", "C"), sample("b", "I"), sample("b", "C", epoch=2), sample("c", 0.25),
        sample("d", "maybe"), sample("e", True), sample("f", "P")]))
    answers = log.answers
    assert answers.item_id.tolist() == list("abcef")
    assert answers.score.tolist() == pytest.approx([1, 0.5, 0.25, 1, 0.5])
    assert set(answers.encoder) == {"hub small-clip"} and set(answers.subset) == {"sums"}
    assert answers.prediction[0] == "It is 4." and answers.answer[0] == "4"
    assert log.skipped.reason.tolist() == ["no score of 0 to 1 by the first scorer"]

def test_an_id_has_one_number_in_all_logs():
    assert other_logs._id_number("17") == 17 == other_logs._id_number(17)
    numbers = {other_logs._id_number(f"question {k}") for k in range(10_000)}
    assert len(numbers) == 10_000 and max(numbers) < 2**63

@pytest.mark.parametrize("name, content, why", [
    ("x.eval", b"no zip", "no finished log of Inspect"),
    ("x.json", b'{"status": "started", "eval": {}}', "no finished log of Inspect.*samples"),
    ("x.csv", b"id,score,colour\n1,1,red\n", "unknown columns colour: expected id, score"),
    ("x.csv", b"id,score,score\n1,1,1\n", "more than one column score"),
    ("x.csv", b"id,score,benchmark\n1,1,a\n2,1,b\n", "of 2 benchmarks, a, b"),
    ("x.csv", b"id,score\n1,much\n,1\n2,7\n", "no answer that can be used"),
    ("x.csv", b"id,score\n", "no answer that can be used: it has no rows")])
def test_what_is_no_log_says_why(name, content, why, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why): read_log(tmp_path / name)

def test_rows_that_are_no_scores_are_counted(tmp_path):
    (tmp_path / "m.csv").write_text("id,score\na,1\nb,often\n,0\nc,2\n")
    log = read_log(tmp_path / "m.csv")
    assert len(log.answers) == 1
    assert log.skipped.reason.tolist() == ["the score is 'often': expected 0 to 1", "no id",
                                           "the noted score is 2.0: expected 0 to 1"]

def test_rows_that_are_no_text_or_too_short_are_counted(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"id,score\na,1\n\xff,1\nb\nc,0\n")
    log = read_log(tmp_path / "m.csv")
    assert log.answers.score.tolist() == [1, 0]
    assert log.skipped.reason.tolist() == ["the row is not UTF-8", "1 cells, 2 expected"]

def test_two_tables_are_compared_in_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    for name, shift in (("clip", 0.15), ("dino", 0.0)):
        right = (rng.random(400) * 0.2 + hard < 0.6 + shift).astype(int)
        table = pd.DataFrame(dict(id=[f"q{k}" for k in range(400)], score=right,
                                  subset=["color", "count"] * 200))
        table.sample(frac=1, random_state=1).to_csv(f"{name}.csv", index=False) # order is free
    main(["vqa", "clip.csv", "dino.csv", "--out", "tables"])
    made = {path.stem: pd.read_csv(path) for path in (tmp_path / "tables").glob("*.csv")}
    apart = next(table for name, table in made.items() if name.startswith("differences"))
    row = apart[(apart.level == "overall") & (apart.average == "macro")].iloc[0]
    sign = 1 if row.a == "clip" else -1
    assert 0.05 < sign * row.difference < 0.25 and row.p < 0.05
