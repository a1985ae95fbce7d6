"Whatever a log holds: every row is used or listed, and nothing but a `UserError` is raised."
import io, json, tempfile
from contextlib import redirect_stderr
from pathlib import Path
import pandas as pd
from hypothesis import assume, given, strategies as some
from ccd.files import UserError
from ccd.vqa.benchmarks.questions import _LETTERS
from ccd.vqa.benchmarks.reading import _READERS, _reading
from ccd.vqa.benchmarks.suite import BENCHMARKS
from ccd.vqa.statistics.answers import _answer_coverage, _check_answers, _how_read
from ccd.vqa.statistics.logs import _vlmevalkit_name, read_log
from ccd.vqa.statistics.report import _load_logs

TASKS = ("vmcbench", "gqa", "mme", "mmmu_val", "mmvp", "seedbench", "mathvista_testmini_cot",
         "ocrbench", "my_task")
DATASETS = ("VMCBench_DEV", "MME", "MMVP", "MMBench_DEV_EN", "MMMU_DEV_VAL", "AI2D_TEST_NO_MASK",
            "RealWorldQA")
text = some.text(some.characters(exclude_categories=["Cs"]), max_size=12)
said = some.sampled_from(["A", "(b)", "", "Failed to obtain answer via API.", "yes", "12.5",
                          "[1, 2]", "\\boxed{C}"]) | text
scalar = some.none() | some.booleans() | some.integers() | some.floats() | said
value = some.recursive(scalar,
                       lambda x: some.lists(x, max_size=3) | some.dictionaries(said, x, max_size=3),
                       max_leaves=6)
KEYS = ("doc_id", "filtered_resps", "target", "input", "doc", "exact_match", "score", "average",
        "resps")
NOTES = ("question_id", "category", "score", "answer", "pred", "pair_index", "is_correct", "index",
         "A", "options", "choices")
note = some.dictionaries(some.sampled_from(NOTES), value, max_size=5)
plain = some.builds(lambda k, x: dict(doc_id=k, target="A", filtered_resps=x, exact_match=1.0),
                    some.integers(0, 10**6), said)
line = some.one_of(plain,
                   some.builds(lambda a, b: a | b, plain,
                               some.dictionaries(some.sampled_from(KEYS), value | note,
                                                 max_size=4)), value)
COLUMNS = ("index", "question", "answer", "prediction", "category", "hit", "split", *"ABC")
row = some.builds(lambda k, x: dict(index=str(k), question="q?", A="red", B="blue", answer="A",
                                    prediction=x), some.integers(0, 10**6), said)
harm = some.one_of(some.none(), some.tuples(some.just("cut"), some.floats(0, 1)),
                   some.tuples(some.just("put"), some.binary(min_size=1, max_size=4)))

def harmed(data, how): # cut off, or with bytes in its middle
    if how is None: return data
    kind, x = how
    return (data[:int(x * len(data))] if kind == "cut"
            else data[:len(data) // 2] + x + data[len(data) // 2:])

def read(name, data):
    "The log of a file of this content; None where it was refused, by its name."
    with tempfile.TemporaryDirectory() as home, redirect_stderr(io.StringIO()):
        (path := Path(home) / name).write_bytes(data)
        try: log = read_log(path)
        except UserError as e:
            assert name in str(e) or "partner beside it" in str(e)
            return None
        assert log.answers.score.between(0, 1).all() and log.skipped.reason.str.len().gt(0).all()
        log.answers.to_parquet(Path(home) / "answers.parquet")
        assert (_how_read(log.answers).n_questions.sum()
                == _answer_coverage(log.answers).n_questions.sum() == len(log.answers))
        return log

@given(some.sampled_from(TASKS), some.lists(line, max_size=6), harm)
def test_every_line_of_lmms_eval_is_used_or_listed(task, lines, how):
    data = harmed("\n".join(json.dumps(x) for x in lines).encode(), how)
    log = read(f"x_samples_{task}.jsonl", data)
    if log:
        assert (len(log.answers) + len(log.skipped)
                == sum(bool(l.strip()) for l in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")))

@given(some.lists(some.binary(max_size=30), min_size=1, max_size=5))
def test_lines_of_any_bytes(lines): assert read("x_samples_gqa.jsonl", b"\n".join(lines)) is None

cell = said.map(lambda x: "".join(c for c in x if c.isprintable())) # a workbook holds no others
record = some.builds(lambda a, b: {k: x if x.isprintable() else "x" for k, x in (a | b).items()},
                     row, some.dictionaries(some.sampled_from(COLUMNS), cell, max_size=4))

def as_file(kind, rows):
    t, f = pd.DataFrame(rows), io.BytesIO()
    if kind == "xlsx": t.to_excel(f, index=False)
    elif kind == "json": return json.dumps(rows).encode()
    else: t.to_csv(f, sep="\t" if kind == "tsv" else ",", index=False)
    return f.getvalue()

@given(some.sampled_from(DATASETS), some.sampled_from(("tsv", "csv", "json", "xlsx")),
       some.lists(record, min_size=1, max_size=5))
def test_every_row_of_vlmevalkit_is_used_or_listed(dataset, kind, rows):
    log = read(f"m_{dataset}.{kind}", as_file(kind, rows))
    if log: assert len(log.answers) + len(log.skipped) == len(rows)

@given(some.sampled_from(("tsv", "csv", "json", "xlsx")),
       some.lists(record, min_size=1, max_size=3), harm.filter(bool))
def test_a_harmed_table_is_read_or_refused(kind, rows, how):
    read(f"m_VMCBench_DEV.{kind}", harmed(as_file(kind, rows), how))

@given(some.lists(row | some.dictionaries(some.sampled_from(COLUMNS), value) | value,
                  max_size=5) | value)
def test_json_of_any_kind(data):
    log = read("m_VMCBench_DEV.json", json.dumps(data).encode())
    if log and isinstance(data, list): assert len(log.answers) + len(log.skipped) == len(data)

FILES = some.dictionaries(some.sampled_from([
    "x_samples_gqa.jsonl", "y_samples_gqa.jsonl", "m/m_VMCBench_DEV.tsv",
    "m/m_VMCBench_DEV_openai_result.tsv", "m/m_VMCBench_DEV_acc.csv",
    "m/T20260101_Ga/m_VMCBench_DEV.tsv", "m/T20260102_Gb/m_MMBench_DEV_EN_V11.tsv", "m/m_Own.csv",
    "notes.txt", "results.json", "m/m.pkl"]),
    some.booleans(), min_size=1)

@given(FILES)
def test_every_file_of_a_folder_is_read_or_listed(files):
    line = b'{"doc_id": 0, "target": "x", "filtered_resps": "x", "exact_match": 1}'
    rows = [dict(index=0, question="q", answer="A", prediction="A", A="a", B="b", hit=1)]
    with tempfile.TemporaryDirectory() as home, redirect_stderr(io.StringIO()):
        for name, table in files.items():
            (path := Path(home) / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(line if name.endswith("l") and "jsonl" in name
                             else as_file(path.suffix[1:], rows) if table
                             and path.suffix in (".tsv", ".csv") else b"a,b\n1,2\n")
        try: answers, left = _load_logs(home)
        except UserError as e: assert "no *_samples_" in str(e); return
        _check_answers(answers)
        of = answers.groupby(["encoder", "benchmark"]).ngroups
        assert of + len(left[left.row.astype(str) == ""]) == len(files)

@given(text, some.dictionaries(some.sampled_from(_LETTERS[:5]), text, max_size=5))
def test_any_answer_to_any_options(answer, options):
    letter, how = _reading(answer, options)
    assert letter in options if letter else how in ("empty", "failed", "unread")
    assert how in (*_READERS, "boxed", "empty", "failed", "unread")

@given(some.sampled_from("ABCD"),
       some.sampled_from(("{}", "({})", "**{}**", "\\boxed{{{}}}", "{}.", "[{}]", "Answer: {}",
                          "The answer is {}.", "option {}",
       "<answer>{}</answer>", "The answer is ({})", "`{}`", "<think>A, B, C or D?</think>{}")),
       some.lists(text, min_size=4, max_size=4))
def test_a_letter_is_read_whatever_the_options_are(letter, way, texts):
    answer = way.format(letter)
    # then the text may be meant
    assume(not any(t.strip() and t.lower().strip() in answer.lower() for t in texts))
    assert _reading(answer, dict(zip("ABCD", texts)))[0] == letter

@given(text, some.sampled_from([n for b in BENCHMARKS.values() for n in b.logs]),
       some.sampled_from(("", "_result", "_openai_result", "_gpt-4o-mini_result")))
def test_a_name_is_taken_apart(model, dataset, judge):
    model = "".join(c for c in model if c.isalnum()) or "m"
    assert _vlmevalkit_name(f"logs/{model}_{dataset}{judge}.xlsx") == (model, dataset)
    assert _vlmevalkit_name(f"logs/{model}_{dataset}_V11{judge}.xlsx") == (model, f"{dataset}_V11")
