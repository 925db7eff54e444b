"""How to cite: CITATION.cff, and what the README says."""

import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_what_the_format_requires(citation):
    """By the schema of CFF 1.2.0."""
    required = {"cff-version", "message", "title", "authors"}
    optional = {"type", "version", "license", "abstract", "keywords", "references"}
    assert required <= citation.keys() <= required | optional
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["authors"] == [{"name": "The authors of dcn-jax"}]
    for paper in citation["references"]:
        assert {"type", "title", "authors"} <= paper.keys()
        assert paper["type"] == "conference-paper"
        for author in paper["authors"]:
            assert author.keys() == {"family-names", "given-names"}
        assert all(isinstance(paper[key], int) for key in ("year", "start", "end"))
        assert paper["conference"].keys() == {"name"}


def test_it_agrees_with_the_package(citation):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["title"] == project["name"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]


def test_it_agrees_with_the_readme(citation):
    entries = dict(
        re.findall(r"@\w+\{(\w+),(.*?)\n\}", (ROOT / "README.md").read_text(), re.S)
    )
    assert entries.keys() == {"dai2017deformable", "zhu2019deformable", "dcn_jax"}
    papers = [entries["dai2017deformable"], entries["zhu2019deformable"]]
    for entry, paper in zip(papers, citation["references"], strict=True):
        assert f"title = {{{paper['title']}}}" in entry
        assert f"year = {{{paper['year']}}}" in entry
        names = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
        assert f"author = {{{' and '.join(names)}}}" in entry
        assert f"pages = {{{paper['start']}--{paper['end']}}}" in entry
    assert f"version = {{{citation['version']}}}" in entries["dcn_jax"]
