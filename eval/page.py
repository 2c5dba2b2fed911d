"""Makes a results page: one self-contained HTML file for a folder of tables, figures and animations.

    python -m eval.page --results results/paper --command "./run.sh paper"

Reads, in and below the folder: table.md of eval.tables, JSON of eval.likelihood, PNG and GIF of eval.figures
(with the descriptions they carry), flags and versions of run folders and of files of predictions. Writes index.html
there: first the figure of sequences (figure3*.png or sequences*.png), figure 4 (figure4*.png) and the headline table of
every data set, then the other tables, collapsed, and everything else. Pictures are embedded; the page has no scripts
and a content security policy that forbids loading anything.
"""

from data_gen.console import parse, run_module
from data_gen.errors import UserError
from data_gen.files import begins, check_output, output_path, read_json
from eval.options import Page as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.page", lambda: parse(Arguments, "eval.page"))

import base64
import datetime
import html
import io
import os
import pathlib
import shlex
import string
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree as etree

import markdown
from markdown.treeprocessors import Treeprocessor
from PIL import Image

from eval.drawing import this_command
from eval.predictions import Predictions

_TEMPLATE = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")  # a `string.Template`


class Source(NamedTuple):
    """Where results come from: a name, all flags, versions of packages and the command."""

    name: str
    flags: Mapping[str, Any]
    versions: Mapping[str, Any]


def _text(value: Any) -> str:
    """HTML of a value."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return html.escape("–" if value is None else str(value))


def table(caption: str, header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """An HTML table; the first cell of a row is its heading. Wide tables scroll on their own, by keyboard too."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return _scroll(
        f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        caption,
    )


def _scroll(content: str, label: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(label)}">{content}</div>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


class _Tables(Treeprocessor):
    """Fits a document into the page: headings two levels lower, header cells for rows and columns, scrolling tables.

    Of the tables below a heading of level 2 only the first stays open; the others, and notes, are collapsed.
    """

    def run(self, root: etree.Element) -> None:
        self._fold(root)
        for element in list(root.iter()):
            if element.tag in ("h1", "h2", "h3", "h4"):
                element.tag = f"h{int(element.tag[1]) + 2}"
            elif element.tag == "th":
                element.set("scope", element.get("scope", "col"))
            elif element.tag == "tr" and len(element) and element[0].tag == "td":
                element[0].tag = "th"
                element[0].set("scope", "row")
        for parent in list(root.iter()):
            for i, table in enumerate(list(parent)):
                if table.tag == "table":
                    parent[i] = etree.Element(
                        "div", {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": "table"}
                    )
                    parent[i].append(table)

    @staticmethod
    def _fold(root: etree.Element) -> None:
        parts: list[list[etree.Element]] = [[]]
        for element in list(root):
            if element.tag in ("h1", "h2", "h3"):
                parts.append([])
            parts[-1].append(element)
            root.remove(element)
        is_open = False
        for part in parts:
            level, title = (part[0].tag, "".join(part[0].itertext())) if part else ("", "")
            has_table = any(element.tag == "table" for element in part)
            if (level == "h3" and has_table and is_open) or title == "Notes":
                details = etree.SubElement(root, "details")
                etree.SubElement(details, "summary").text = title
                details.extend(part[1:])
            else:
                root.extend(part)
            is_open = has_table or (is_open and level == "h3")


def from_markdown(text: str) -> str:
    """HTML of the Markdown of eval.tables (see `_Tables`); HTML inside it stays text."""
    document = markdown.Markdown(extensions=["tables"])
    document.treeprocessors.register(_Tables(document), "tables of the page", 5)  # after those that add to the tree
    return document.convert(html.escape(text, quote=False))


# ---------------------------------------------------------------------------------------------------------------
# Contents of the folder
# ---------------------------------------------------------------------------------------------------------------


def _files(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """Files in and below a folder, the least deep first; hidden ones, which may be half-written, are left out."""
    found = [
        path
        for path in folder.rglob(f"*{ending}")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: (len(path.parts), str(path)))


def picture(path: pathlib.Path) -> str:
    """A PNG or GIF as an HTML figure, with the description in its metadata.

    Raises:
      UserError: it is not a complete picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, (width, height), info = (image.format or "").lower(), image.size, image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a whole picture ({error}); make it again") from None
    if kind == "gif":
        said = (info.get("comment", b"").decode(errors="replace").split("\n") + [""] * 3)[:3]
    else:
        said = [str(info.get(key, "")) for key in ("Title", "Description", "Comment")]
    title, description, command = said
    # Pictures are drawn at 160 dots per inch; a browser's inch has 96.
    width, height = (width, height) if kind == "gif" else (round(width * 0.6), round(height * 0.6))
    made = _folded("Command", f"<pre>{_text(command)}</pre>") if command else ""
    shown = (
        f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" width="{width}" '
        f'height="{height}" alt="{_text(description or title or path.stem)}"'
    )
    # On a phone a wide picture keeps a legible size and scrolls sideways.
    shown = _scroll(shown + ' class="wide">', title or path.stem) if width > 720 else shown + ">"
    return (
        f"<figure>{shown}<figcaption><strong>{_text(title or path.stem)}</strong> {_text(description)}{made}"
        "</figcaption></figure>"
    )


def _json(path: pathlib.Path) -> Any:
    return read_json(path, "make it again")


def likelihood_table(path: pathlib.Path) -> str:
    """A file of eval.likelihood as a table, one column per checkpoint; empty for other files."""
    content = _json(path)
    rows = content.get("results") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return ""
    names = [name for name, value in rows[0].items() if not isinstance(value, (list, dict))]
    steps = [f"step {row.get('step')}" if len(rows) > 1 else "value" for row in rows]
    return table(path.stem, ["quantity", *steps], [[name, *(row.get(name) for row in rows)] for name in names])


def sources(folder: pathlib.Path, runs: Iterable[pathlib.Path]) -> list[Source]:
    """The flags and versions of run folders, named or below the folder, and of files of predictions.

    If runs are named, predictions of other runs are left out.
    """
    found, runs = {}, list(runs)
    named = [run_ / ("config.json" if (run_ / "model.safetensors").is_file() else "flags.json") for run_ in runs]
    for flags in [*named, *_files(folder, "flags.json")]:
        if not flags.is_file():
            raise UserError(f"{flags}: no such file; --runs takes run folders")
        versions = flags.with_name("versions.json")
        found[flags.parent.resolve()] = Source(
            flags.parent.name, _json(flags), _json(versions) if versions.is_file() else {}
        )
    for path in _files(folder, ".h5"):
        try:
            with Predictions(path) as predictions:
                about = predictions.about
        except UserError:
            continue  # a data set
        if runs and pathlib.Path(about.run).resolve() not in found:
            continue  # left by another comparison
        found[path.resolve()] = Source(path.stem, about.flags, about.versions)
        found.setdefault(pathlib.Path(about.run).resolve(), found[path.resolve()])
    return list({id(source): source for source in found.values()}.values())


def _settings(found: list[Source]) -> str:
    """Flags that all share as a list, the others as a table."""
    names = list(dict.fromkeys(name for source in found for name in source.flags))
    same = [name for name in names if all(source.flags.get(name) == found[0].flags.get(name) for source in found)]
    parts = []
    differ = [name for name in names if name not in same]
    if differ:
        parts.append(
            table(
                "Settings that differ",
                ["run", *differ],
                [[source.name, *(source.flags.get(name) for name in differ)] for source in found],
            )
        )
    shared = table(
        "Settings" + (" of all" if len(found) > 1 else ""),
        ["flag", "value"],
        [[name, found[0].flags[name]] for name in same],
    )
    said = f"{len(same)} settings{' of all' * bool(differ)}"
    return "".join(parts) + _folded(said, shared)


def _versions(found: list[Source]) -> str:
    merged: dict[str, dict[str, None]] = {}
    for source in found:
        for name, value in source.versions.items():
            if name != "command":
                merged.setdefault(name.replace("_", " "), {})[_short(value)] = None
    return table("Versions", ["of", "version"], [[name, list(values)] for name, values in merged.items()])


def _short(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _commands(command: str | None, found: list[Source]) -> str:
    lines = [command] if command else []
    for source in found:
        made = source.versions.get("command")
        if made:
            # The script's path is that of a module: sqair/train.py was started as python -m sqair.train.
            script = pathlib.PurePath(made[0])
            module = ".".join([script.parent.name, script.stem])
            lines.append(shlex.join(["python", "-m", module, *map(str, made[1:])]))
    return "".join(f"<pre>{_text(line)}</pre>" for line in dict.fromkeys(lines))


def build(folder: pathlib.Path, title: str, command: str | None = None, runs: Iterable[pathlib.Path] = ()) -> str:
    """The page of a folder of results.

    Args:
      folder: the folder of results.
      title: the page's title.
      command: the command that made the results.
      runs: run folders outside of the folder.

    Returns:
      HTML.

    Raises:
      UserError: the folder holds nothing to show, or a damaged file.
    """
    tables = [from_markdown(path.read_text(encoding="utf-8")) for path in _files(folder, ".md")]
    likelihoods = "".join(
        likelihood_table(path) for path in _files(folder, ".json") if path.name not in ("flags.json", "versions.json")
    )
    tables.append(_folded("Likelihoods", likelihoods) if tables and likelihoods else likelihoods)
    pictures, leading = _files(folder, ".png"), []
    for names in (("figure3", "sequences"), ("figure4",)):
        leading += [path for path in pictures if path.stem.startswith(names)][:1]
    animations = "".join(picture(path) for path in _files(folder, ".gif"))
    sections = {
        "Results": "".join([*map(picture, leading), *tables]),
        "Animations": f"<details open><summary>Moving pictures (close to stop them)</summary>{animations}</details>"
        if animations
        else "",
        "Figures": "".join(picture(path) for path in pictures if path not in leading),
    }
    if not any(sections.values()):
        raise UserError(f"{folder}: no table.md, likelihood.json, PNG or GIF in it; run the evaluation first")
    found = sources(folder, runs)
    if found:
        sections |= {"Settings": _settings(found), "Versions": _versions(found)}
    sections["Commands"] = _commands(command, found)
    shown = {name: content for name, content in sections.items() if content}
    return string.Template(_TEMPLATE).substitute(
        title=_text(title),
        command=_text(this_command()),
        time=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        links="".join(f'<li><a href="#{name.lower()}">{name}</a></li>' for name in shown),
        sections="\n".join(
            f'<section id="{name.lower()}" aria-labelledby="{name.lower()}-title">'
            f'<h2 id="{name.lower()}-title">{name}</h2>\n{content}\n</section>'
            for name, content in shown.items()
        ),
    )


def main() -> None:
    arguments = parse(Arguments, "eval.page")
    if not arguments.results.is_dir():
        raise UserError(f"{arguments.results}: no such folder; --results takes a folder of results")
    title = arguments.title or f"Results: {arguments.results.resolve().name}"
    path, kind = arguments.results / "index.html", begins("a page of eval.page", _TEMPLATE.split("${title}")[0])
    check_output(path, kind)
    page = build(arguments.results, title, arguments.command, arguments.runs)
    with output_path(path, kind) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"wrote {path} ({os.path.getsize(path) / 1e6:.1f} MB)")
