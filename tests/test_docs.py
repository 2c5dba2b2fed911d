"""What the documents name exists: classes of docs/equations.md, cited pages and sections of docs/spec, links."""

import ast
import re

import pytest

from tests.data_helpers import ROOT

ROOMS = ("sqair", "relational", "data_gen", "eval", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = {path.name: path for path in (ROOT / "docs" / "spec").glob("*.md")}

# `path.py`: `Class`, `Class.method`, `function`
NAMED = re.compile(r"`([\w/]+\.py)`(?:: ((?:`[\w.]+`(?:, )?)+))?")
# docs/spec/page.md, "Section", "Section": on one line, as all are
CITED = re.compile(r'spec(?:/|: )(\w+\.md)((?:, "[^"]+")*)')
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)

# Classes whose docstrings cite and contain the equation of the papers that they compute.
CARRIES_AN_EQUATION = {
    "sqair/core.py": ["DiscoveryCore", "PropagationCore", "AffineDiagNormal"],
    "sqair/discover.py": ["Discover", "RecurrentNormal"],
    "sqair/propagate.py": ["Propagate", "PropagationPrior"],
    "sqair/timestep.py": ["SQAIRTimestep"],
    "sqair/glimpses.py": ["Decoder"],
    "relational/interaction_network.py": ["InteractionNetwork"],
    "relational/relational_memory.py": ["AttentionBlock", "RelationalMemory"],
}


def parse(path):
    return ast.parse((ROOT / path).read_text())


def definitions(path):
    """The names of a module's functions and classes, and of the latter's methods as Class.method."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = {node.name for node in parse(path).body if isinstance(node, kinds)}
    for node in parse(path).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, kinds)}
    return found


def headings(path):
    return re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text()), re.MULTILINE)


def anchor(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_file_and_name_of_the_equations_exists():
    text = (ROOT / "docs" / "equations.md").read_text()
    named = NAMED.findall(text)
    assert len(named) == len(re.findall(r"\.py`", text)) > 30
    names = 0
    for path, listed in named:
        assert (ROOT / path).is_file(), path
        listed = re.findall(r"`([\w.]+)`", listed)
        names += len(listed)
        missing = set(listed) - definitions(path)
        assert not missing, f"docs/equations.md: {path} has no {missing}"
    assert names > 50


@pytest.mark.parametrize("path, name", [(path, name) for path, names in CARRIES_AN_EQUATION.items() for name in names])
def test_a_class_of_the_papers_carries_its_equation(path, name):
    docstring = next(ast.get_docstring(node) for node in parse(path).body if getattr(node, "name", None) == name)
    assert re.search(r"::\n\n    .*[=~]", docstring), "no equation"
    assert re.search(r"[Ee]quations? \d|Section \d", docstring), "does not say which one"
    assert f"`{name}`" in (ROOT / "docs" / "equations.md").read_text()


def test_every_cited_page_and_section_of_the_specification_exists():
    cited = 0
    for path in SOURCES + DOCUMENTS:
        if path.name == "test_docs.py":
            continue
        for page, sections in CITED.findall(path.read_text()):
            cited += 1
            assert page in PAGES, f"{path}: cites {page}"
            missing = set(re.findall(r'"([^"]+)"', sections)) - set(headings(PAGES[page]))
            assert not missing, f"{path}: {page} has no section {missing}"
    assert cited > 20


def test_a_source_cites_the_specification_by_its_whole_path():
    for path in SOURCES:
        if path.name != "test_docs.py":
            assert not re.search(r"(?<!docs/)spec(/|: )\w+\.md", path.read_text()), path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(CODE.sub("", path.read_text())):
        if re.match(r"\w+:", link):
            continue
        target, _, fragment = link.partition("#")
        target = path.parent / target if target else path
        assert target.exists(), link
        assert not fragment or fragment in map(anchor, headings(target)), link


def test_every_test_that_holds_a_promise_exists():
    """In the table of docs/reliability.md: files, tests in a file, and tests without a file."""
    tests = {str(path): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    named = re.findall(r"`(?:([\w/]+\.py)(?:::)?)?(test_\w+)?`", rows)
    for file, name in named:
        assert any(
            f"def {name}" in content for path, content in tests.items() if path.endswith(f"/{file}" * bool(file))
        ), f"{file} {name}"
    assert len(named) > 30
