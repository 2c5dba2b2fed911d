"""Makes a results page: one HTML file that needs nothing else, for a folder of tables, figures and animations.

    python -m eval.page --results results/paper --command "./run.sh paper"

Takes what lies in and below the folder: table.md of eval.tables, JSON of eval.likelihood, PNG and GIF of eval.figures
(with the descriptions they carry), flags and versions of run folders and of files of predictions. Writes index.html
there: first the figure of sequences (figure3*.png or sequences*.png), figure 4 (figure4*.png) and the headline table of
every data set, below them the other tables, folded away, and all else. Pictures are embedded; the page has no scripts
and a policy that forbids it to load anything.
"""

from data_gen.command_line import UserError, begins, check_output, output_path, parse, read_json, run_module
from eval.options import Page as Arguments

if __name__ == "__main__":      # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.page", lambda: parse(Arguments, "eval.page"))

import base64
import datetime
import html
import io
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

import markdown
from PIL import Image

from eval.drawing import this_command
from eval.predictions import Predictions

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #c8c8c8; --soft: #f3f3f3;
  --link: #0b57a4; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --paper: #16181b; --line: #4a4d52; --soft: #22252a; --link: #8ec1ff; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }}
h1, h2, h3, h4, h5 {{ line-height: 1.25; }}
a {{ color: var(--link); }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }}
nav a {{ display: inline-block; padding: .4rem 0; }}
.scroll {{ overflow-x: auto; }}
.scroll:focus-visible {{ outline: 2px solid var(--link); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
thead th {{ background: var(--soft); }}
caption {{ text-align: left; font-weight: 600; padding: .35rem 0; }}
figure {{ margin: 1.5rem 0; }}
img {{ display: block; max-width: 100%; height: auto; background: white; padding: .25rem;
  border: 1px solid var(--line); border-radius: .25rem; }}
figcaption, .fine {{ font-size: .9rem; }}
pre, code {{ font-family: ui-monospace, monospace; font-size: .875rem; }}
pre {{ background: var(--soft); padding: .6rem; border-radius: .25rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
td {{ white-space: nowrap; }}
tbody th {{ min-width: 9rem; }}
.wide {{ min-width: 45rem; }}
summary {{ cursor: pointer; padding: .4rem 0; font-weight: 600; }}
</style>
</head>
<body>
<header><h1>{title}</h1></header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
{sections}
</main>
<footer class="fine"><p>Made {time} by <code>{command}</code>.</p></footer>
</body>
</html>
"""


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
    """An HTML table; the first cell of a row is its heading. Wide ones scroll by themselves, by keyboard too."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    body = "".join(f'<tr><th scope="row">{_text(first)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in rest)
                   + "</tr>" for first, *rest in rows)
    return _scroll(f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
                   "</table>", caption)


def _scroll(content: str, label: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(label)}">{content}</div>'


def from_markdown(text: str) -> str:
    """HTML of Markdown with tables, headings two levels down; HTML inside it stays text."""
    found = markdown.markdown(html.escape(text, quote=False), extensions=["tables"])
    found = re.sub(r"<(/?)h([1-4])>", lambda m: f"<{m[1]}h{int(m[2]) + 2}>", found)
    found = re.sub(r"<th\b", '<th scope="col"', found)
    found = re.sub(r"<tr>\s*<td\b([^>]*)>(.*?)</td>", r'<tr><th scope="row"\1>\2</th>', found)
    return re.sub(r"<table>.*?</table>", lambda m: _scroll(m[0], "table"), found, flags=re.S)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def from_tables(text: str) -> str:
    """`from_markdown`, but of the tables below a heading of level 2 only the first is open; notes are folded away."""
    found, is_open = [], False
    for part in re.split(r"(?m)^(?=#{1,3} )", text):
        level, title, rest = re.match(r"(#*) ?(.*)(?s:(.*))", part).groups()
        has_table = re.search(r"(?m)^\|[-:|]*\|$", rest) is not None
        if (level == "###" and has_table and is_open) or title == "Notes":
            found.append(_folded(title, from_markdown(rest)))
        else:
            found.append(from_markdown(part))
        is_open = has_table or (is_open and level == "###")
    return "".join(found)


# ---------------------------------------------------------------------------------------------------------------
# What lies in the folder
# ---------------------------------------------------------------------------------------------------------------


def _files(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """Files in and below a folder, nearer ones first; hidden ones are half-written or not meant."""
    found = [path for path in folder.rglob(f"*{ending}")
             if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(found, key=lambda path: (len(path.parts), str(path)))


def picture(path: pathlib.Path) -> str:
    """A PNG or GIF as an HTML figure, described by what it carries in itself.

    Raises:
      UserError: it is no whole picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, (width, height), info = image.format.lower(), image.size, image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a whole picture ({error}); make it again") from None
    if kind == "gif":
        said = (info.get("comment", b"").decode(errors="replace").split("\n") + [""] * 3)[:3]
    else:
        said = [str(info.get(key, "")) for key in ("Title", "Description", "Comment")]
    title, description, command = said
    # Frames are drawn for 160 dots an inch, a browser's inch has 96.
    width, height = (width, height) if kind == "gif" else (round(width * 0.6), round(height * 0.6))
    made = _folded("Command", f"<pre>{_text(command)}</pre>") if command else ""
    shown = (f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" width="{width}" '
             f'height="{height}" alt="{_text(description or title or path.stem)}"')
    # On a phone a wide picture keeps a legible size and scrolls sideways.
    shown = _scroll(shown + ' class="wide">', title or path.stem) if width > 720 else shown + ">"
    return (f"<figure>{shown}<figcaption><strong>{_text(title or path.stem)}</strong> {_text(description)}{made}"
            "</figcaption></figure>")


def _json(path: pathlib.Path) -> Any:
    return read_json(path, "make it again")


def likelihood_table(path: pathlib.Path) -> str:
    """What eval.likelihood wrote as a table, a column a checkpoint; nothing for other files."""
    content = _json(path)
    rows = content.get("results") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return ""
    names = [name for name, value in rows[0].items() if not isinstance(value, (list, dict))]
    steps = [f"step {row.get('step')}" if len(rows) > 1 else "value" for row in rows]
    return table(path.stem, ["quantity", *steps], [[name, *(row.get(name) for row in rows)] for name in names])


def sources(folder: pathlib.Path, runs: Iterable[pathlib.Path]) -> list[Source]:
    """The flags and versions of run folders, those below the folder among them, and of files of predictions.

    Where runs are named, of their predictions alone.
    """
    found, runs = {}, list(runs)
    named = [run_ / ("config.json" if (run_ / "model.safetensors").is_file() else "flags.json") for run_ in runs]
    for flags in [*named, *_files(folder, "flags.json")]:
        if not flags.is_file():
            raise UserError(f"{flags}: no such file; --runs takes run folders")
        versions = flags.with_name("versions.json")
        found[flags.parent.resolve()] = Source(flags.parent.name, _json(flags),
                                               _json(versions) if versions.is_file() else {})
    for path in _files(folder, ".h5"):
        try:
            with Predictions(path) as predictions:
                about = predictions.about
        except UserError:
            continue                    # a data set
        if runs and pathlib.Path(about.run).resolve() not in found:
            continue                    # left by another comparison
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
        parts.append(table("Settings that differ", ["run", *differ],
                           [[source.name, *(source.flags.get(name) for name in differ)] for source in found]))
    shared = table("Settings" + (" of all" if len(found) > 1 else ""), ["flag", "value"],
                   [[name, found[0].flags[name]] for name in same])
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


def _commands(command: Optional[str], found: list[Source]) -> str:
    lines = [command] if command else []
    for source in found:
        made = source.versions.get("command")
        if made:
            # The script's path is that of a module: sqair/train.py was started as python -m sqair.train.
            script = pathlib.PurePath(made[0])
            module = ".".join([script.parent.name, script.stem])
            lines.append(shlex.join(["python", "-m", module, *map(str, made[1:])]))
    return "".join(f"<pre>{_text(line)}</pre>" for line in dict.fromkeys(lines))


def build(folder: pathlib.Path, title: str, command: Optional[str] = None, runs: Iterable[pathlib.Path] = ()) -> str:
    """The page of a folder of results.

    Args:
      folder: of results.
      title: of the page.
      command: that made the results.
      runs: run folders outside of the folder.

    Returns:
      HTML.

    Raises:
      UserError: there is nothing to show, or something is damaged.
    """
    tables = [from_tables(path.read_text(encoding="utf-8")) for path in _files(folder, ".md")]
    likelihoods = "".join(likelihood_table(path) for path in _files(folder, ".json")
                          if path.name not in ("flags.json", "versions.json"))
    tables.append(_folded("Likelihoods", likelihoods) if tables and likelihoods else likelihoods)
    pictures, leading = _files(folder, ".png"), []
    for names in (("figure3", "sequences"), ("figure4",)):
        leading += [path for path in pictures if path.stem.startswith(names)][:1]
    animations = "".join(picture(path) for path in _files(folder, ".gif"))
    sections = {"Results": "".join([*map(picture, leading), *tables]),
                "Animations": f"<details open><summary>Moving pictures (close to stop them)</summary>{animations}"
                              "</details>" if animations else "",
                "Figures": "".join(picture(path) for path in pictures if path not in leading)}
    if not any(sections.values()):
        raise UserError(f"{folder}: no table.md, likelihood.json, PNG or GIF in it; run the evaluation first")
    found = sources(folder, runs)
    if found:
        sections |= {"Settings": _settings(found), "Versions": _versions(found)}
    sections["Commands"] = _commands(command, found)
    shown = {name: content for name, content in sections.items() if content}
    return _TEMPLATE.format(
        title=_text(title), command=_text(this_command()),
        time=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        links="".join(f'<li><a href="#{name.lower()}">{name}</a></li>' for name in shown),
        sections="\n".join(f'<section id="{name.lower()}" aria-labelledby="{name.lower()}-title">'
                           f'<h2 id="{name.lower()}-title">{name}</h2>\n{content}\n</section>'
                           for name, content in shown.items()))


def main() -> None:
    arguments = parse(Arguments, "eval.page")
    if not arguments.results.is_dir():
        raise UserError(f"{arguments.results}: no such folder; --results takes a folder of results")
    title = arguments.title or f"Results: {arguments.results.resolve().name}"
    path, kind = arguments.results / "index.html", begins("a page of eval.page", _TEMPLATE.split("{title}")[0])
    check_output(path, kind)
    page = build(arguments.results, title, arguments.command, arguments.runs)
    with output_path(path, kind) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"wrote {path} ({os.path.getsize(path) / 1e6:.1f} MB)")
