"""Published numbers: recomputed in other ways, errors by simulation, bad tables, and the files in
the package."""
import csv, importlib.resources, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from ccd.vqa.published import claims, files, tables
from ccd.files import UserError

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).resolve().parents[2]
ROWS = dict(accuracy=39, webssl_vqa=41, webssl_classic=17, webssl_summary=3, cambrian_encoders=18,
            vmcbench=4, benchmarks=63, claims=27, originals=56)
Z = 1.959964

@pytest.fixture(scope="module")
def vqa(): return tables.load_published_table("webssl_vqa")

def plain():
    "The rows as text, read without the library."
    at = importlib.resources.files("ccd.vqa.published") / "data" / "webssl_vqa.csv"
    return list(csv.DictReader(at.read_text(encoding="utf-8").splitlines()))

def sixteen(r): # points, in the order of the table
    v = [float(x) for x in list(r.values())[3:]]
    return [v[0] / 20, *v[1:]]

# --- the data

def test_every_table_has_its_rows():
    assert {k: len(tables.load_published_table(k)) for k in tables._DATA} == ROWS

def test_a_number_has_a_status_and_a_public_source():
    t = tables.load_published_table("accuracy")
    assert (t.value.isna() == (t.status == "not found")).all()
    assert set(t.status) == {"paper", "repository", "second-hand", "not found"}
    for source in [*t.source, *tables.load_published_table("benchmarks").source]:
        assert any(s in source for s in ("arXiv", ".com/", ".co/", ".org", ".edu/", "test")), source

def test_what_is_not_known_of_the_paper_is_said_to_be_so():
    t = tables.published_accuracy()
    assert (t.loc[["SigLIP", "CLIP-RoBERTa-4", "CLIP-RoBERTa-10", "CLIP-Vicuna", "CLIP B/32"]]
            == "not found").all(axis=None)
    assert (t.loc[["CLIP", "DINO"],
                  ["CIFAR-10", "ImageNetV2", "CIFAR-10.1", "Flowers"]]
            == "not found").all(axis=None)
    assert list(t.loc["CLIP", ["ImageNet", "Cars", "CUB"]]) == ["65.8*", "74.7*", "52.3*"]
    assert (list(t.loc["DINO", ["ImageNet", "Cars", "CUB", "VMCBench OCR"]])
            == ["66.4*", "54.1*", "43.0*", "40.0*"])
    assert t.loc["CLIP - DINO", "VMCBench OCR"] == "7.5"

def test_the_originals_say_where_each_cell_comes_from():
    t = tables.load_published_table("originals")
    known = ~t.status.isin(["not found", "does not apply"])
    assert ((known == t.source.notna()).all()
            and set(t.status[known]) == {"paper", "repository", "second-hand"})
    assert all(any(s in x for s in ("arXiv", ".com/")) for x in t.source.dropna())
    shown, sources = tables.original_models_table()
    cells = shown.to_numpy().ravel()
    assert len(cells) == len(t) and (cells == "not found").sum() == (t.status == "not found").sum()
    for r in t[known].itertuples():
        cell = shown.loc[r.measure, f"{r.encoder}, {r.trained}"]
        text, _, n = cell[:-1].rpartition(" [")
        assert (text == r.value + "*" * (r.status == "second-hand")
                and sources[int(n) - 1] == r.source)

def test_the_originals_repeat_the_other_tables():
    t = tables.load_published_table("originals").set_index(["measure", "encoder",
                                                            "trained"]).value.dropna()
    def number(*at):
        return float(t[at].split()[0])
    a = tables.load_published_table("accuracy").set_index(["work", "encoder", "measure"]).value
    for e in ("CLIP", "DINO"):
        for ours, theirs in {"ImageNet, linear probe of the paper's code": "ImageNet",
                             "Cars, linear probe": "Cars",
                             "CUB, linear probe": "CUB", "VMCBench, OCR": "VMCBench OCR"}.items():
            assert number(ours, e, "controlled") == a["paper", e, theirs]
    official = "DINO B/16, official"
    assert (number("ImageNet, linear probe of the paper's code", "DINO", "original")
            == a["paper", official, "ImageNet"])
    assert (number("ImageNet, linear probe of its authors", "DINO", "original")
            == a["dino", official, "ImageNet linear"])
    assert (number("ImageNet, nearest neighbours", "DINO", "original")
            == a["dino", official, "ImageNet k-NN"])
    kin = tables.load_published_table("cambrian_encoders").set_index("model")["OCR & Chart"]
    assert number("Cambrian-1, OCR & Chart", "CLIP", "original") == kin["CLIP L/14 336"]
    assert number("Cambrian-1, OCR & Chart", "DINO", "original") == kin["DINOv2 L 336"]
    assert (number("VMCBench, all of dev", "CLIP", "original")
            == tables.load_published_table("vmcbench").set_index("model").average["LLaVA-1.5-7B"])

def test_printed_differences_of_the_paper_follow():
    t = tables.load_published_table("accuracy").pivot(index="measure", columns="encoder",
                                                      values="value")
    both = t.dropna(subset=["CLIP - DINO"])
    assert len(both) == 3 and np.allclose(both.CLIP - both.DINO, both["CLIP - DINO"])

def test_maps_hold_each_benchmark_once():
    for name, sizes in dict(cambrian=[4] * 4, vmcbench=[7, 6, 2, 5]).items():
        parts = [b for bs in tables.categories(name).values() for b in bs]
        assert [len(b) for b in tables.categories(name).values()] == sizes
        assert parts == list(tables.benchmark_suite(name).index) and len(set(parts)) == len(parts)

def test_claims_name_rows_that_exist(vqa):
    classic, known = (tables.load_published_table("webssl_classic"),
                      set(tables._averaging_weights().index))
    for c in tables.load_published_table("claims").itertuples():
        t = classic if c.quantity in classic else vqa
        assert c.a in set(t.model) and c.b in set(t.model) and c.kind in ("more", "equal")
        assert c.quantity in known or c.quantity in classic

def test_an_unknown_name_is_an_error(vqa):
    for call, said in ((lambda: tables.load_published_table("x"), "webssl_vqa"),
                       (lambda: tables.benchmark_suite("x"), "cambrian"),
                       (lambda: claims.test_differences(vqa, [("CLIP 8B", "CLIP 1B")]), "CLIP 7B"),
                       (lambda: claims.test_differences(vqa, [("CLIP 7B", "CLIP 1B", "ocr")]),
                        "OCR & Chart")):
        with pytest.raises(UserError, match=said): call()

# --- averages

def test_forty_rows_recompute_and_one_does_not(vqa):
    checked, off = tables.check(vqa), {}
    for k, r in enumerate(plain()):
        mean = sum(sixteen(r)) / 16
        assert checked.average[k] == pytest.approx(mean)
        groups = [sum(sixteen(r)[i:i + 4]) / 4 for i in range(0, 16, 4)]
        assert list(checked.loc[k, [*tables.categories()]]) == pytest.approx(groups)
        if abs(mean - float(r["average"])) > 0.02: off[r["model"]] = round(mean, 2)
    assert off == {"I-JEPA H 224": 44.30}
    assert list(checked.model[checked.follows.eq(False)]) == ["I-JEPA H 224"]
    assert checked.follows.eq(True).sum() == 40

def test_mme_counts_a_twentieth(vqa):
    more = vqa.assign(MME_P=vqa.MME_P + 20)
    assert np.allclose(tables.check(more).average - tables.check(vqa).average, 1 / 16)

def test_a_missing_part_is_never_averaged_away(vqa):
    t = vqa.copy(); t.loc[3, "OCRBench"] = np.nan
    r = tables.check(t).loc[3]
    assert np.isnan(r["average"]) and np.isnan(r["OCR & Chart"]) and np.isnan(r["OCR & Chart_se"])
    assert pd.isna(r.follows) and r["General"] == pytest.approx(tables.check(vqa)["General"][3])
    pd.testing.assert_frame_equal(tables.check(t).drop(index=3), tables.check(vqa).drop(index=3))

def test_categories_alone_weigh_as_their_subsets_do():
    rng = np.random.default_rng(0)
    sizes = dict(zip(tables.categories("vmcbench"), (7, 6, 2, 5)))
    t = pd.DataFrame({c: rng.uniform(20, 90, 6) for c in sizes}).assign(model=list("abcdef"))
    want = sum(t[c] * k for c, k in sizes.items()) / 20
    assert np.allclose(tables.check(t, "vmcbench").average, want)

def test_a_tolerance_knows_how_coarsely_a_table_is_printed(vqa):
    right = tables._weighted_means(tables._normalized_scores(vqa),
                                   tables._averaging_weights())["average"]
    for printed, bad in ((right.round(2), 0), (right.round(1), 0), (right.round(2) + 0.04, 41),
                         (right.round(1) + 0.2, 41)):
        assert len(tables.mismatches(vqa.assign(average=printed.round(2)))) == bad

def test_a_wrong_category_is_named(vqa):
    t = vqa.head(3).assign(**{"OCR & Chart": tables.check(vqa.head(3))["OCR & Chart"].round(2)
                              + [0, 0.5, 0]})
    assert (tables.mismatches(t)[["model", "quantity"]].values.tolist()
            == [["Web-DINO 2B", "OCR & Chart"]])

def test_one_model_with_two_numbers_is_found(vqa):
    assert vqa.model.duplicated().sum() == 4 and not len(tables._inconsistent_rows(vqa))
    t = vqa.copy(); t.loc[6, "GQA"] += 1
    assert tables._inconsistent_rows(t).values.tolist() == [["Web-DINO 7B", "GQA"]]

def test_whole_numbers_are_coarse_where_questions_are_many(vqa):
    assert list(tables._coarsely_printed(vqa).benchmark) == ["DocVQA"]
    assert (set(tables._coarsely_printed(vqa.assign(GQA=vqa.GQA.round())).benchmark)
            == {"DocVQA", "GQA"})
    assert "MMVP" not in set(tables._coarsely_printed(vqa.assign(MMVP=vqa.MMVP.round())).benchmark)

# --- errors

def draw(p, n, rng, times=20_000): return 100 * rng.binomial(n, p / 100, times) / n

def test_standard_errors_are_those_of_drawn_questions(vqa):
    rng, n = np.random.default_rng(1), tables.benchmark_suite().n.values
    for k in (0, 8, 36):
        drawn = np.stack([draw(p, m, rng) for p, m in zip(sixteen(plain()[k]), n)])
        r = tables.check(vqa).loc[k]
        assert r.average_se == pytest.approx(drawn.mean(0).std(), rel=0.03)
        for i, c in enumerate(tables.categories()):
            assert r[f"{c}_se"] == pytest.approx(drawn[4 * i:4 * i + 4].mean(0).std(), rel=0.03)

def test_mme_is_as_uncertain_as_ten_unequal_subtasks():
    "Each picture's two questions stand or fall together; ten subtasks count alike."
    rng, pictures = np.random.default_rng(2), (30, 30, 30, 30, 147, 170, 200, 200, 200, 20)
    drawn = sum(draw(87.0, n, rng) for n in pictures) / 10
    assert (tables._sampling_error(87.0, tables.benchmark_suite().n["MME_P"])
            == pytest.approx(drawn.std(), rel=0.03))

def test_the_error_of_a_perfect_score_is_not_zero():
    se = tables._sampling_error(np.array([0, 100, 50]), 100)
    assert se == pytest.approx([np.sqrt(0.99), np.sqrt(0.99), 5])

def test_equal_models_seldom_differ():
    rng, n = np.random.default_rng(3), tables.benchmark_suite().n.values
    p, w = rng.uniform(20, 80, 16), np.full(16, 1 / 16)
    a, b = ([draw(x, m, rng, 1000) for x, m in zip(p, n)] for _ in "ab")
    real = [claims.difference_verdict(claims.difference(x, y, n, w)) == "real"
            for x, y in zip(np.transpose(a), np.transpose(b))]
    assert 0.03 < np.mean(real) < 0.07

def paired(p, q, n, both): # z of p - q from the four cells of right and wrong, per question
    d, discordant = (p - q) / 100, (p + q) / 100 - 2 * both
    return d / np.sqrt((discordant - d**2) / n)

@pytest.mark.parametrize("p, q, n",
                         [(47.5, 40.0, 100), (46.0, 38.0, 150), (60.5, 58.0, 800),
                          (12.0, 9.0, 300)])
def test_the_correlation_that_would_do_is_the_one_that_does(p, q, n):
    d = claims.difference(p, q, n)
    assert claims.difference_verdict(d).startswith("tie")
    spread = np.sqrt(p * (100 - p) * q * (100 - q)) / 1e4
    assert paired(p, q, n, p * q / 1e4 + d["r"] * spread) == pytest.approx(Z, rel=1e-5)
    assert paired(p, q, n, p * q / 1e4) == pytest.approx(d["diff"] / d["se"])
    best = paired(p, q, n, min(p, q) / 100)
    assert best == pytest.approx(d["diff"] / d["least"])
    assert claims.difference_verdict(d).endswith("however paired") == (best <= Z)

@pytest.mark.parametrize("p, q, n", [(47.5, 40.0, 100), (52.0, 50.0, 400)])
def test_the_discordant_share_is_where_a_paired_test_turns(p, q, n):
    share = claims._compare_proportions(p, q, n)["discordant"]
    assert paired(p, q, n, ((p + q) / 100 - share) / 2) == pytest.approx(Z, rel=1e-5)
    assert (p - q) / 100 < share < 1

def test_a_difference_turns_round(vqa):
    there, back = claims.test_differences(vqa,
                                          [("CLIP 7B", "CLIP 1B"),
                                           ("CLIP 1B", "CLIP 7B")]).to_dict("records")
    assert (back["diff"] == pytest.approx(-there["diff"])
            and back["ci_low"] == pytest.approx(-there["ci_high"]))
    assert back["verdict"] == there["verdict"]
    for k in ("se", "p", "r", "least"): assert back[k] == pytest.approx(there[k])

# --- claims

def test_known_ties_and_differences(vqa):
    one, four, eight = (f"Web-DINO 7B, {k}B seen" for k in (1, 4, 8))
    for pair, real in ((("CLIP 7B", "CLIP 1B"), False), ((eight, four), False),
                       ((eight, "SigLIP SO400M 224"), False),
                       ((eight, "MetaCLIP H 224"), False),
                       (("SigLIP SO400M 224", "MetaCLIP H 224"), False),
                       (("Web-DINO 7B", "Web-DINO 1B"), True), ((eight, one, "OCR & Chart"), True)):
        assert (claims.test_differences(vqa, [pair]).verdict[0] == "real") == real, pair

def test_differences_by_hand(vqa):
    rows = {r["model"]: sixteen(r) for r in plain()}
    gain = np.mean(rows["Web-DINO 7B"]) - np.mean(rows["Web-DINO 1B"])
    assert (round(gain, 2) == 4.86
            and claims.test_differences(vqa,
                                        [("Web-DINO 7B", "Web-DINO 1B")])["diff"][0]
            == pytest.approx(gain))
    light, none = rows["Web-DINO 2B, light filter"], rows["Web-DINO 2B"]
    t = claims.leave_one_out(vqa, "Web-DINO 2B, light filter", "Web-DINO 2B",
                             "Knowledge").set_index("without")
    for i, b in enumerate(tables.categories()["Knowledge"], 4):
        rest = [j for j in range(4, 8) if j != i]
        assert t["diff"][b] == pytest.approx(np.mean([light[j] - none[j] for j in rest]))
    assert list(t.index[t.verdict != "real"]) == ["MathVista_M"]

def test_claims_are_judged_by_their_numbers():
    t = claims.claims().set_index("claim")
    assert np.isnan(t.ci_low[t.quantity.isin(["ADE20K", "ADE20K_ms", "NYUd_lin1"])]).all()
    has = t.dropna(subset="ci_low")
    within = (has.ci_low <= 0) & (has.ci_high >= 0)
    assert (has.verdict.str.startswith("a tie") == within).all()
    assert t.verdict["the light filter adds Knowledge"] == "holds; +0.97 without MathVista_M, a tie"
    assert "53.87 (Table 6); Web-DINO 1B 49.01 (Table 6)" in t.rests_on.iloc[0]
    assert t.verdict.str.contains("differs from").sum() == 2

@pytest.mark.parametrize("kind, p, q, said", [
    ("more", 60, 50, "holds"), ("more", 50, 60, "the other way round"),
    ("more", 50.1, 50, "a tie, however paired"),
    ("equal", 60, 50, "more than level"), ("equal", 50, 60, "not level: lower"),
    ("equal", 50, 50, "a tie, however paired")])
def test_verdicts(kind, p, q, said):
    assert claims._judge_claim(kind, claims.difference(p, q, 2000)) == said

def test_the_papers_headline():
    dev, everything = (claims._compare_proportions(47.5, 40.0, 100),
                       claims.paper_differences().loc["VMCBench OCR"])
    assert dev["verdict"].startswith("tie") and dev["ci_low"] < 0 < dev["ci_high"]
    assert everything.verdict == "real" and 880 < everything.n < 920

# --- a table of one's own

def write(t, path, **how): t.to_csv(path, index=False, **how); return path

def test_names_and_order_do_not_matter(vqa, tmp_path):
    t = vqa.head(5).sample(frac=1, random_state=0)
    other = {"MME_P": "MME Perception", "MMB": "MMBench", "SEED_I": "SEEDBench_IMG",
             "SQA_I": "ScienceQA",
             "CVBench_2D": "CV-Bench 2D", "MathVista_M": "mathvista", "average": "Avg"}
    mixed = t.rename(columns=other)[t.rename(columns=other).columns[::-1]]
    read, notes = files._read_table(write(mixed, tmp_path / "t.tsv", sep="\t",
                                          encoding="utf-8-sig"))
    assert not notes
    assert np.allclose(tables.check(read).average, tables.check(t).average)

def test_what_is_left_out_is_said(vqa, tmp_path):
    said, t = [], vqa.head(2).drop(columns=["MMVP"]).assign(POPE=85, HallusionBench=40)
    t.loc[1, "GQA"] = np.nan
    rows, _ = files.check_file(write(t, tmp_path / "t.csv"), write=said.append)
    text = "\n".join(said)
    assert "left out: POPE, HallusionBench" in text and "no column for MMVP" in text
    assert ("Web-DINO 2B: no value for GQA" in text
            and "0 follow, 0 do not, 2 cannot be checked" in text)
    assert rows["average"].isna().all() and rows["Vision-Centric"].isna().all()
    assert rows["General"].isna().tolist() == [False, True] and rows["Knowledge"].notna().all()

def test_a_wrong_average_is_found(vqa, tmp_path):
    said, t = [], vqa.head(3).copy()
    t.loc[1, "average"] += 1
    _, wrong = files.check_file(write(t, tmp_path / "t.csv"), write=said.append)
    assert list(wrong.model) == ["Web-DINO 2B"]
    assert "2 follow, 1 do not" in said[0] and any("Web-DINO 2B, average" in s for s in said)

def test_a_leaderboard_of_categories_can_be_read(tmp_path):
    board = tables.load_published_table("vmcbench").query("table == "
                                                          "'test'").drop(
                                                              columns="source").rename(
                                                                  columns={
                                                                      "Doc & Chart": "doc&chart"})
    said = []
    rows, wrong = files.check_file(write(board, tmp_path / "t.csv"), "vmcbench", said.append)
    assert (not len(wrong) and "3 follow, 0 do not" in said[0]
            and "rests on a printed category" in said[1])
    with pytest.raises(UserError, match="rows 1, 2, 3 are all"):
        files._read_table(write(board.assign(model="A"), tmp_path / "t.csv"), "vmcbench")

def test_doubtful_scales_are_noted(vqa, tmp_path):
    _, notes = files._read_table(write(vqa.head(3).assign(GQA=0.6, MME_P=91.0), tmp_path / "t.csv"))
    assert [n.split()[0] for n in notes] == ["MME_P", "GQA"]

def change(**k): return lambda t: t.assign(**k)

BAD = {
    "no column `model`": lambda t: t.drop(columns="model"),
    "no benchmark of cambrian": lambda t: t[["model", "average"]],
    "column GQA: 'n/a'; expected a number": change(GQA=["62.4", "n/a", "63"]),
    "column GQA: 'nan'; expected a number": change(GQA=["62.4", "nan", "63"]),
    "column GQA: 'inf'; expected a number": change(GQA=["62.4", "inf", "63"]),
    "column GQA: '62,4'; expected a number": change(GQA=["62,4", "61", "63"]),
    "column GQA: '62.4%'; expected a number": change(GQA=["62.4%", "61", "63"]),
    "column GQA: '101.0'; expected GQA in 0 to 100": change(GQA=[60.0, 61.0, 101.0]),
    "column MMVP: '-1.0'; expected MMVP in 0 to 100": change(MMVP=[60.0, -1.0, 1.0]),
    "column MME_P: '2001'; expected MME_P in 0 to 2000": change(MME_P=[1800, 1801, 2001]),
    "column average: '1000'; expected average in 0 to 100": change(average=1000),
    "rows 1, 3 are all 'A'": lambda t: t.assign(model=["A", "B", "A"]).drop(columns="table"),
    "row 2 has no model": change(model=["A", " ", "B"]),
    "mean the same": change(MMBench=50),
    "seem to be fractions": lambda t: t.assign(**{b: 0.5 for b in tables.benchmark_suite().index}),
    "has no rows": lambda t: t.head(0)}

@pytest.mark.parametrize("said", BAD)
def test_bad_tables_say_what_is_wrong(said, vqa, tmp_path):
    with pytest.raises(UserError) as e:
        files._read_table(write(BAD[said](vqa.head(3)), tmp_path / "t.csv"))
    assert said in str(e.value)

@pytest.mark.parametrize("content, said", [
    (None, "no file"), (b"", "has no rows"), (b"\xff\xfem\x00", "UTF-8"),
    (b"model,GQA\nA,61,2\n", "row 1: 3 cells under 2 names"),
    (b"model,GQA,GQA\nA,61,2\n", "mean the same"), (b"model;GQA\nA;61\n", "no column `model`")])
def test_bad_files_say_what_is_wrong(content, said, tmp_path):
    path = tmp_path / "t.csv"
    if content is not None: path.write_bytes(content)
    with pytest.raises(UserError) as e: files._read_table(path)
    assert said in str(e.value)

def test_the_same_model_may_stand_in_two_tables(vqa, tmp_path):
    rows, _ = files.check_file(write(vqa, tmp_path / "t.csv"), write=lambda s: None)
    assert len(rows) == 41 and rows.follows.eq(True).sum() == 40

def test_all_that_is_published_is_checked():
    said = []
    rows, wrong = files.check_file(write=said.append)
    assert (wrong[["model", "quantity"]].values.tolist()
            == [["I-JEPA H 224", "average"], ["I-JEPA H 224", "OCR & Chart"]])
    assert "40 follow, 1 do not" in said[0] and len(rows) == 41
    text = "\n".join(said)
    assert all(s in text
               for s in ("DocVQA is printed in steps of 1", "VMCBench, test: 3 rows",
                         "3 follow, 0 do not", *claims.claims().claim))

# --- installed

def test_a_wheel_and_an_sdist_bring_tables_and_pages(tmp_path):
    pytest.importorskip("setuptools")
    home = tmp_path / "project"; home.mkdir()
    for f in ("setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / f, home)
    shutil.copytree(ROOT / "ccd", home / "ccd", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in ("bdist_wheel", "sdist"):
        subprocess.run([sys.executable, "setup.py", "-q", kind, "-d", str(tmp_path)], cwd=home,
                       check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as t:
        sdist = [n.partition("/")[2] for n in t.getnames()]
    wanted = ({f"ccd/vqa/published/data/{k}.csv" for k in tables._DATA}
              | {f"ccd/report/pages/{f.name}" for f in (ROOT / "ccd/report/pages").iterdir()})
    assert len(wanted) > len(tables._DATA) + 4 and wanted <= set(wheel) and wanted <= set(sdist)
