"""The paper's comparison from files of predictions, as Markdown, CSV and LaTeX.

    python -m eval.tables --predictions results/predictions --out results/paper

Each file is one run on one data set (`eval.predict`); runs are grouped by model and seed, which the file records.
Writes metrics/<model>_seed<seed>_<data set>.json for every file, and table.md, table.tex, table.csv, differences.csv.
Metrics are computed with NumPy from the files alone: neither the model nor the data file is needed. If a file and this
code have not changed, its metrics are read from its JSON.
"""

from data_gen.console import parse, progress, run_module
from data_gen.errors import UserError
from data_gen.files import Kind, begins, check_output, fingerprint, output_path, read_json
from eval.options import Tables as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.tables", lambda: parse(Arguments, "eval.tables"))

import csv
import glob
import itertools
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.comparison import DataSet, collect, run_title
from eval.predictions import Predictions
from eval.scores import BOXES, HORIZON_METRICS, METRICS, PAPER_METRICS, check_figures, evaluate
from eval.summary import Difference, Summary
from sqair.config import model_titles

LAST_INFERRED = "0 (last inferred frame)"


# ---------------------------------------------------------------------------------------------------------------
# The comparison as text
# ---------------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Rows of cells below a header, to be written as Markdown or LaTeX; mathematics is in plain characters."""

    title: str
    header: list[str]
    rows: list[list[str]]


def _cell(summary: Summary | None, digits: int, seeds: int) -> str:
    if summary is None:
        return "–"
    spread = "" if math.isnan(summary.std) else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}" + (f" ({summary.seeds} of {seeds})" if summary.seeds < seeds else "")


def tables(data_set: DataSet) -> list[Table]:
    """The paper's comparison, all metrics, metrics by horizon, and differences between models."""
    paper, bounds, models, titles = data_set.paper, data_set.any["bounds"], list(data_set.runs), model_titles()
    shown = [metric for metric in PAPER_METRICS if data_set.has(metric)]
    found = []
    if shown:
        header, rows = ["model", "seeds"], []
        for metric in shown:
            header += [METRICS[metric].label, "paper"]
        for model, runs in data_set.runs.items():
            row = [titles[model], data_set.seeds(model)]
            for metric in shown:
                digits, theirs = METRICS[metric].digits, paper.get(model, {}).get(metric)
                row += [
                    _cell(data_set.summary(model, metric), digits, len(runs)),
                    "–" if theirs is None else f"{theirs:g}",
                ]
            rows.append(row)
        rows.append(
            ["perfect canvas", "–"]
            + [
                cell
                for metric in shown
                for cell in (f"{bounds[metric]:.{METRICS[metric].digits}f}" if metric in bounds else "–", "–")
            ]
        )
        found.append(Table("Predicted last frame, nats", header, rows))

    names = [titles[model] for model in models]
    rows = [
        [
            METRICS[metric].label,
            *(_cell(data_set.summary(m, metric), METRICS[metric].digits, len(data_set.runs[m])) for m in models),
        ]
        for metric in METRICS
        if data_set.has(metric)
    ]
    found.append(Table("All metrics (log-likelihoods, bounds and KL: nats per frame)", ["metric", *names], rows))

    last = data_set.any["comparable"]["n_generated"]
    rows = []
    for metric, h in itertools.product(HORIZON_METRICS, range(last + 1) if last else ()):
        metric_of = METRICS.get(metric) or METRICS[f"{metric}_predicted"]
        if data_set.has(metric, "by_horizon"):
            rows.append(
                [
                    metric_of.label,
                    str(h) if h else LAST_INFERRED,
                    *(_cell(data_set.summary(m, metric, h), metric_of.digits, len(data_set.runs[m])) for m in models),
                ]
            )
    if rows:
        found.append(Table("By horizon", ["metric", "frames ahead", *names], rows))

    rows = []
    for later, earlier, metric, difference in data_set.differences():
        digits = METRICS[metric].digits
        interval = "–" if math.isnan(difference.low) else f"{difference.low:.{digits}f} to {difference.high:.{digits}f}"
        rows.append(
            [
                f"{titles[later]} − {titles[earlier]}",
                METRICS[metric].label,
                f"{difference.difference:.{digits}f}",
                interval,
                difference.note or "–",
            ]
        )
    if rows:
        found.append(
            Table(
                "Differences of means, with 95 % bootstrap intervals over seeds",
                ["models", "metric", "difference", "interval", "note"],
                rows,
            )
        )
    return found


def _settings(data_set: DataSet) -> str:
    same = data_set.any["comparable"]
    return (
        f"{same['split']} split, {same['n_sequences']:,} sequences of {same['n_frames']} frames, the last "
        f"{same['n_generated']} predicted; {same['n_samples']} samples per sequence, {same['k_particles']} "
        f"particles, {data_set.any['slots']} slots"
    )


def _trouble(data_set: DataSet) -> list[str]:
    return [f"failed, not in the means: {run_title(model, seed)}: {why}" for model, seed, why in data_set.failed] + [
        f"collapsed, in the means: {run_title(model, seed)}: {how}" for model, seed, how in data_set.collapsed
    ]


def _foot(data_sets: Sequence[DataSet]) -> list[str]:
    everything = [run for data_set in data_sets for run in itertools.chain(*data_set.runs.values())]
    used = {metric for run in everything for metric in run["metrics"]}
    geometry = dict.fromkeys(run["boxes"] for run in everything if "mota" in run["metrics"])
    return [
        "Mean ± standard deviation over all seeds and samples together; table.csv has the two apart. "
        '"Paper": figure 4 and section 3 of the R-SQAIR paper. "Perfect canvas": what a canvas equal to the '
        'image would reach on these data. "–": not defined on these data, as a relational log-likelihood is '
        "where nothing collides.",
        *(f"Box and centre of an object (--boxes {boxes}): {BOXES[boxes]}." for boxes in geometry),
        *(f"{METRICS[metric].label}: {METRICS[metric].meaning}." for metric in METRICS if metric in used),
    ]


def markdown(data_sets: Sequence[DataSet]) -> str:
    """The comparison as Markdown."""
    lines = ["# Comparison", ""]
    for data_set in data_sets:
        lines += [f"## {data_set.name}", "", _settings(data_set) + ".", ""]
        for table in tables(data_set):
            lines += [
                f"### {table.title}",
                "",
                "| " + " | ".join(table.header) + " |",
                "|" + "---|" * len(table.header),
            ]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        lines += ["### Failed and collapsed runs", ""]
        lines += [f"- {line}" for line in _trouble(data_set)] or ["None."]
        lines.append("")
    return "\n".join(lines + ["## Notes", ""] + [f"- {line}" for line in _foot(data_sets)]) + "\n"


_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
}


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", text)  # a minus, not a hyphen


def latex(data_sets: Sequence[DataSet]) -> str:
    """The comparison as LaTeX tables, to be \\input; needs the package booktabs."""
    lines = ["% Made by eval.tables; needs \\usepackage{booktabs}."]
    for data_set in data_sets:
        for table in tables(data_set):
            if table.title.startswith("Differences"):  # without the notes, which are whole sentences
                table = table._replace(header=table.header[:-1], rows=[row[:-1] for row in table.rows])
            text_columns = 2 if table.header[1] in ("metric", "frames ahead") else 1
            columns = "l" * text_columns + "r" * (len(table.header) - text_columns)
            lines += [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(f'{data_set.name}. {table.title}. {_settings(data_set)}.')}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(_latex, table.header)) + r" \\",
                r"\midrule",
            ]
            lines += [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
            lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        lines += [f"% {data_set.name}, {line}" for line in _trouble(data_set)]
    return "\n".join(lines) + "\n"


_CSV = ("data_set", "model", "metric", "horizon", *Summary._fields, "runs", "paper", "bound")


def csv_rows(data_sets: Sequence[DataSet]) -> list[list[Any]]:
    """The header, then one row per data set, model, metric and horizon (empty for the metric itself)."""
    rows: list[list[Any]] = [list(_CSV)]
    for data_set in data_sets:
        horizons = data_set.any["comparable"]["n_generated"] + 1
        asked = [(metric, None) for metric in METRICS] + list(itertools.product(HORIZON_METRICS, range(horizons)))
        for (model, runs), (metric, horizon) in itertools.product(data_set.runs.items(), asked):
            summary = data_set.summary(model, metric, horizon)
            if summary is not None:
                at_end = horizon is None
                rows.append(
                    [
                        data_set.name,
                        model,
                        metric,
                        "" if at_end else horizon,
                        *summary,
                        len(runs),
                        data_set.paper.get(model, {}).get(metric, "") if at_end else "",
                        data_set.any["bounds"].get(metric, "") if at_end else "",
                    ]
                )
    return rows


def _difference_rows(data_sets: Sequence[DataSet]) -> list[list[Any]]:
    rows: list[list[Any]] = [["data_set", "model", "minus", "metric", *Difference._fields]]
    for data_set in data_sets:
        rows += [[data_set.name, *names, *difference] for *names, difference in data_set.differences()]
    return rows


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def find(patterns: Sequence[str]) -> list[str]:
    """The files that names, patterns and folders (all .h5 in and below them) match.

    Raises:
      UserError: one of them matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        path = pathlib.Path(pattern)
        names = sorted(map(str, path.rglob("[!.]*.h5")) if path.is_dir() else glob.glob(pattern, recursive=True))
        if not names:
            raise UserError(f"{pattern}: no file of predictions there; make them with eval.predict")
        found += names
    return list(dict.fromkeys(found))


# The beginnings of older results, which new ones may replace.
_BEGINNINGS = {
    "table.md": "# Comparison",
    "table.tex": "% Made by eval.tables",
    "table.csv": ",".join(_CSV[:3]),
    "differences.csv": "data_set,model,minus",
}


def _kind(path: pathlib.Path) -> Kind:
    return begins("a result of eval.tables", _BEGINNINGS.get(path.name, '{\n "file":'))


def _write(path: pathlib.Path, content: str | list[list[Any]]) -> None:
    with output_path(path, _kind(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if isinstance(content, str):
            file.write(content)
        else:
            csv.writer(file).writerows(content)


def metrics_name(model: str, seed: int, data_set: str) -> str:
    """The name of the file of a run's figures on a data set, in the folder metrics/."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", data_set).strip("_")
    return f"{model}_seed{seed}_{slug}.json"


def _known(path: pathlib.Path, made_from: str) -> dict[str, Any] | None:
    """Figures that were written earlier, if they were made from the same file, code and options; else None."""
    try:
        figures = read_json(path, "")
        check_figures(figures)
        return figures if figures["made_from"] == made_from else None
    except (UserError, ValueError, KeyError, TypeError):
        return None


def main() -> None:
    arguments = parse(Arguments, "eval.tables")
    names, runs = find(arguments.predictions), []
    for name in _BEGINNINGS:
        check_output(arguments.out / name, _kind(arguments.out / name))
    code = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    with progress(len(names), "metrics", "files") as advance:
        for name in names:
            with Predictions(name) as predictions:
                about, made_from = predictions.about, f"{fingerprint(name, *code)} {arguments.boxes}"
                path = arguments.out / "metrics" / metrics_name(about.model, about.seed, about.data_set)
                figures = _known(path, made_from) or evaluate(predictions, arguments.boxes)
            runs.append(figures | {"file": name, "made_from": made_from})
            advance(1)
    data_sets = collect(runs, arguments.expected_models, arguments.expected_seeds)
    for figures in runs:
        name = metrics_name(figures["model"], figures["seed"], figures["data_set"])
        _write(arguments.out / "metrics" / name, json.dumps(figures, indent=1) + "\n")
    text = markdown(data_sets)
    _write(arguments.out / "table.md", text)
    _write(arguments.out / "table.tex", latex(data_sets))
    _write(arguments.out / "table.csv", csv_rows(data_sets))
    _write(arguments.out / "differences.csv", _difference_rows(data_sets))
    print(text)
    print(f"wrote {arguments.out}/table.md, table.tex, table.csv, differences.csv and metrics/")
