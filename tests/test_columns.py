"Tables of version 0.0.1 are read under the columns' new names, by every reader."
import re, shutil
import pandas as pd, pytest
from ccd import files
from ccd.comparison import report as comparison_report
from ccd.comparison.search import letter_encoders, _name_encoders
from ccd.data import filters
from ccd.files import load_table, read_json, renamed, write_json
from ccd.report import accuracy, similarity, tables
from ccd.report.questions import question_table, vqa_difference_table
from ccd.probing import zeroshot
from ccd.study import emoji
from ccd.vqa.command import over_runs, summary_text
from conftest import ROOT

RESULTS = ROOT / "results"
TABLES = sorted(p for p in RESULTS.rglob("*") if p.suffix in (".csv", ".parquet"))
ROWS = [line.split(",")
        for line in (ROOT / "ccd/renamed.csv").read_text(encoding="utf-8").splitlines()]
COLUMNS = [row[1:] for row in ROWS if row[0] == "column"]
SOURCE = "\n".join(p.read_text(encoding="utf-8") for folder in ("ccd", "bench")
                   for p in sorted((ROOT / folder).rglob("*.py")))
OLD_KEYS = ("right", "lo", "hi", "chance", "names", "tests")

@pytest.mark.parametrize("table", TABLES, ids=lambda p: str(p.relative_to(RESULTS)))
def test_no_old_column_is_left(table):
    old, read = renamed("column", table.stem), load_table(table)
    assert not old.keys() & set(read) and read.columns.is_unique
    plain = pd.read_csv(table, nrows=0) if table.suffix == ".csv" else pd.read_parquet(table)
    assert list(read) == [old.get(c, c) for c in plain] # each is there, in its place

def test_every_new_name_is_one_that_a_writer_writes():
    assert len(COLUMNS) > 200 and len({(where, old) for where, old, _ in COLUMNS}) == len(COLUMNS)
    for where, old, new in COLUMNS:
        assert old != new and re.search(rf"\b{re.sub('_ci_(low|high)(_2)?$|_2$', '', new)}",
                                        SOURCE), (where, new)

def test_no_table_is_renamed_to_a_name_that_is_renamed():
    for where in {where for where, *_ in COLUMNS}:
        new = renamed("column", where)
        assert not set(new.values()) & new.keys(), where

def test_a_table_of_others_keeps_its_columns(tmp_path):
    pd.DataFrame(dict(item_id=["1"],
                      direction=["left"])).to_csv(tmp_path / "pairs.csv", index=False)
    assert list(load_table(tmp_path / "pairs.csv")) == ["item_id", "similar_in"]
    assert list(load_table(tmp_path / "pairs.csv", None, rename=False)) == ["item_id", "direction"]

def test_a_new_column_beside_an_old_one_stays(tmp_path):
    pd.DataFrame(dict(purity=[1], label_agreement=[2])).to_csv(tmp_path / "purity.csv", index=False)
    assert load_table(tmp_path / "purity.csv").label_agreement.tolist() == [2]

def test_names_stay_names_under_an_old_column(tmp_path):
    (tmp_path / "per_class.csv").write_text("label,most_taken_for\n01,02\n")
    assert load_table(tmp_path / "per_class.csv").values.tolist() == [["01", "02"]]

# --- readers, each given what version 0.0.1 wrote

def test_the_checks_of_a_study(tmp_path):
    shutil.copy(RESULTS / "mini/dino.jsonl", tmp_path / "metrics.jsonl")
    assert (emoji._learning_checks(tmp_path, RESULTS / "mini/purity.csv")
            == read_json(RESULTS / "mini/learning.json"))

def test_names_of_held_out_concepts(tmp_path):
    old = dict(zip(OLD_KEYS, (0.5, 0.4, 0.6, 0.1, 10, 99)))
    write_json(tmp_path / "zero_shot.json", old)
    row = zeroshot._stored_zero_shot(f"ccd:{tmp_path}").iloc[0]
    assert (row[["accuracy", "ci_low", "ci_high", "n_classes", "n_test"]].tolist()
            == [0.5, 0.4, 0.6, 10, 99])

def test_the_tables_and_figures_of_a_study():
    probes, differences = (load_table(RESULTS / f"mini/{n}.csv") for n in ("probes", "differences"))
    assert " in " in tables.accuracy_table(probes)["items in groups"].iloc[0]
    assert len(tables.accuracy_table(probes, "knn")) and len(tables.difference_table(differences))
    for fig in (accuracy.probe_dots(probes),
                accuracy.few_shot_curves(load_table(RESULTS / "mini/few_shot.csv"))):
        assert fig.axes; similarity.styled_pyplot().close(fig)

@pytest.mark.parametrize("folder", ["mini/vlm-", "vlm/"])
def test_the_tables_of_questions(folder):
    t = {n: load_table(RESULTS / f"{folder}{n}.csv")
         for n in ("summary", "differences", "floors", "categories", "encoders")}
    categories = {c: x.subset.tolist() for c, x in t["categories"].groupby("category", sort=False)}
    assert (len(question_table(t["summary"], categories, ["CLIP", "DINO"]))
            == len(vqa_difference_table(t["differences"], categories)))
    assert (summary_text(t["differences"], "CLIP", "DINO") and over_runs(t["floors"])
            and "feature" in t["encoders"])

@pytest.fixture
def compared(tmp_path):
    "A comparison's folder with the tables of version 0.0.1."
    stage = dict(neighbors=("overlap", "cka"), pairs=("agreement", "verified", "noise", "copies"),
                 attributes=("lift", "attribution"), perturbations=("sensitivity",))
    for folder, names in stage.items():
        (tmp_path / folder).mkdir()
        for n in names: shutil.copy(RESULTS / f"comparison/{n}.csv", tmp_path / folder)
    pairs = pd.read_csv(RESULTS / "comparison/pairs.csv")
    assert "direction" in pairs
    pairs.assign(i=0, j=1).to_parquet(tmp_path / "pairs/pairs.parquet")
    return tmp_path

def test_the_sentences_of_a_comparison(compared):
    said = comparison_report._summary_text(compared, ("CLIP", "DINO"), 4000)
    assert "CKA is 0.255 (0.241 to 0.270)" in said and "DINO is more sensitive to" in said
    assert "similar for CLIP and dissimilar for DINO share" in said

def test_the_sections_of_a_comparison(compared):
    class Pair: names, items = ("CLIP", "DINO"), pd.DataFrame(dict(family=["a"], item_id=["b"]))
    section = comparison_report._share_section(Pair, compared)
    assert "<img" in section["body"] and "Replicated" in section["note"]
    lift = comparison_report._lift_table(comparison_report._table(compared, "attributes/lift.csv",
                                                                  Pair.names), Pair.names)
    assert set(lift["similar for"]) == {"CLIP", "DINO"}
    assert lift.enrichment.str.contains("–").all()
    assert set(load_table(compared / "pairs/pairs.parquet").similar_in) == {"a", "b"}

def test_files_hold_names_of_encoders_and_memory_letters():
    t = load_table(RESULTS / "comparison/agreement.csv")
    for names in (("CLIP", "DINO"), ("b", "a"), ("1", "2")):
        named = _name_encoders(t, names)
        assert set(named.similar_in) == set(names) and letter_encoders(named, names).equals(t)
    assert letter_encoders(t, ("CLIP", "DINO")).equals(t) # version 0.0.1 wrote letters

def test_the_words_on_scores():
    said = filters.format_filter_summary(RESULTS / "filters-test")
    assert "light above 0.5: 47 kept (24.5%), 145 left out" in said

def test_the_reader_of_the_table_of_old_names_ignores_other_kinds():
    assert (renamed("column", "Settings") == {}
            and files.renamed("column", "differences_vmcbench")["lo"] == "ci_low")
