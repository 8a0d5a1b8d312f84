"""Texts and help pages in every language: complete, up to date, and in the form the page reads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpm_solver_nodes.tools import translations

NODES: dict[str, Any] = translations.read(translations.LOCALES / "en" / "nodeDefs.json")
LANGUAGES = translations.languages()
OTHERS = [language for language in LANGUAGES if language != "en"]
# Letters that a sentence in a language has, where they tell it from English.
LETTERS = {
    **{"zh": "[\u4e00-\u9fff]", "zh-TW": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff]"},
    **{"ko": "[\uac00-\ud7af]", "ru": "[\u0400-\u04ff]", "ar": "[\u0600-\u06ff]"},
    **{"fa": "[\u0600-\u06ff]", "he": "[\u0590-\u05ff]"},
}
ARXIV = re.compile(r"\[arXiv:(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)")
ROW = re.compile(r"^\| ([^|]+) \| (.+) \|$", re.MULTILINE)
CONFIRM = "write what is missing, then run: python -m dpm_solver_nodes.tools.translations --confirm"


def definitions(language: str) -> dict[str, Any]:
    return translations.read(translations.LOCALES / language / "nodeDefs.json")


def page(node: str, language: str) -> str:
    return translations.page(node, language).read_text(encoding="utf-8")


def sentences(language: str) -> dict[str, str]:
    """Tooltips and descriptions."""
    return {
        key: text
        for key, text in translations.texts(language).items()
        if key.endswith((" tooltip", " description"))
    }


every_page = pytest.mark.parametrize(
    ("node", "language"), [(node, language) for node in NODES for language in LANGUAGES]
)


# --- texts ---------------------------------------------------------------------------------------


def test_there_are_english_and_chinese_for_all_nodes() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)
    assert len(NODES) == 14


def test_english_leaves_nothing_out() -> None:
    """That it says what the nodes say, tests/comfyui/test_languages.py shows."""
    english = translations.texts("en")
    assert all(english.values())
    for node, texts in NODES.items():
        assert f"{node} page" in english
        for kind in ("inputs", "outputs"):
            assert all(len(entry["tooltip"]) > 15 for entry in texts[kind].values()), node


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_every_text_and_no_other(language: str) -> None:
    assert not translations.differences(language), f"{CONFIRM} {language}"


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_is_translated(language: str) -> None:
    english = sentences("en")
    for key, text in sentences(language).items():
        assert text != english[key], key
        assert re.search(LETTERS.get(language, ""), text), key


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_same_numbers(language: str) -> None:
    """Tolerances, steps and errors, which a reader relies on: in texts and in pages."""
    english = translations.texts("en")
    for key, text in translations.texts(language).items():
        if " options " not in key:
            assert numbers(text) == numbers(english[key]), key


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_options_keep_their_names(language: str) -> None:
    """A translated option begins with the name that workflow files, scripts and papers use."""
    for key, text in translations.texts(language).items():
        if " options " in key:
            assert text.startswith(key.rpartition(" ")[2]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_mean_what_they_say(language: str) -> None:
    """The page takes texts for templates, in which these have a meaning of their own."""
    for key, text in translations.texts(language).items():
        if not key.endswith(" page"):
            assert not set("@{}|") & set(text), key


def test_differences_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(translations.LOCALES, tmp_path / "locales")
    monkeypatch.setattr(translations, "LOCALES", tmp_path / "locales")
    files = {language: tmp_path / "locales" / language / "nodeDefs.json" for language in LANGUAGES}
    english, chinese = (translations.read(files[language]) for language in ("en", "zh"))
    english["DPMSolver_2M"]["description"] += " And more."
    english["DPMSolver_2M"]["inputs"]["new"] = {"name": "new", "tooltip": "An input of today."}
    del chinese["DPMSolver_3M"]["outputs"]["0"]["tooltip"]
    chinese["DPMSolver_3M"]["outputs"]["1"] = {"name": "第二"}
    for language, content in (("en", english), ("zh", chinese)):
        files[language].write_text(json.dumps(content), encoding="utf-8")
    assert sorted(translations.differences("zh")) == [
        "English has changed: DPMSolver_2M description",
        "missing: DPMSolver_2M inputs new name",
        "missing: DPMSolver_2M inputs new tooltip",
        "missing: DPMSolver_3M outputs 0 tooltip",
        "superfluous: DPMSolver_3M outputs 1 name",
    ]


# --- help pages ----------------------------------------------------------------------------------


def test_there_are_no_other_pages() -> None:
    """A page under another name is never shown."""
    expected = {translations.page(node, language) for node in NODES for language in LANGUAGES}
    assert set(translations.DOCS.rglob("*.md")) == expected


@every_page
def test_a_page_has_its_nodes_name_and_a_row_for_each_of_its_ends(node: str, language: str) -> None:
    text, texts = page(node, language), definitions(language)[node]
    assert text.startswith(f"# {texts['display_name']}\n\n")
    heads = re.split(r"^\| [^|]+ \| \|\n\| --- \| --- \|\n", text, flags=re.MULTILINE)
    assert len(heads) == 3, "a table of inputs and one of outputs"
    for table, kind in zip(heads[1:], ("inputs", "outputs"), strict=True):
        cells = [cell for cell, _ in ROW.findall(table.partition("\n\n")[0])]
        assert len(cells) == len(texts[kind])
        for cell, (key, entry) in zip(cells, texts[kind].items(), strict=True):
            known_as = key if kind == "inputs" else NODES[node][kind][key]["name"]
            assert entry["name"] in cell
            assert known_as.casefold() in cell.casefold()


@every_page
def test_a_page_names_its_paper(node: str, language: str) -> None:
    papers = set(ARXIV.findall(page(node, language)))
    assert papers
    assert papers == set(ARXIV.findall(page(node, "en")))


@every_page
def test_a_page_has_its_picture(node: str, language: str) -> None:
    """The page looks for pictures of any language from web/docs on, whatever folder the text is in."""
    sources = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page(node, language))
    assert f"pictures/{node}.png" in sources
    for source in sources:
        assert not re.match(r"/|\.|\w+:", source)
        assert (translations.DOCS / source).is_file(), source


@every_page
def test_a_page_names_templates_that_exist(node: str, language: str) -> None:
    """Those that the English page names; template files are called the same in every language."""
    names = [re.findall(r"(?<!\*)\*([a-z0-9_]+)\*", page(node, one)) for one in ("en", language)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (translations.ROOT / "workflows" / f"{name}.json").is_file(), name


@every_page
def test_links_lead_somewhere(node: str, language: str) -> None:
    """The page leaves links as they are: relative ones would lead nowhere. Nor is HTML needed."""
    text = page(node, language)
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", text):
        assert target.startswith("https://"), target
    assert not re.search(r"<[a-z/!]", text)
