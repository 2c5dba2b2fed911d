"""The results page: what is on it, and how a real browser shows it."""

import base64
import html.parser
import json
import os
import re
import select
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from eval import drawing, page
from tests.data_helpers import run_command, run_here

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TABLE = (
    """# Comparison

## balls4mass64

| model | seeds | log-likelihood |
|---|---|---|
| SQAIR | 5 | 399.5 ± 3.1 |
| R-SQAIR <script>alert(1)</script> | 5 | 457.3 ± 2.0 |

### All metrics

| metric | SQAIR |
|---|---|
| MOTA | 0.958 |

### Failed and collapsed runs

None.

## balls678mass64

32 sequences.

### Predicted last frame

| model | relational |
|---|---|
| SQAIR | -164.1 |

### By horizon

"""
    + "\n| a wide table "
    + "| column with a long name " * 14
    + "|\n|"
    + "---|" * 15
    + "\n"
    + "| x " * 15
    + """|

## Notes

- MOTA: of boxes.
"""
)


PICTURES = ("sequences.png", "figure4.png", "sequences.gif", "curves.png")  # in their order on the page


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results as run.sh leaves it: a table, likelihoods, a figure, an animation, a run."""
    folder = tmp_path_factory.mktemp("results") / "small"
    run_folder = folder / "runs" / "sqair_0"
    run_folder.mkdir(parents=True)
    (folder / "table.md").write_text(TABLE)
    (folder / "likelihood.json").write_text(
        json.dumps({"results": [{"run": "sqair_0", "step": 300, "iwae": -123.456, "confusion": [[1]]}], "notes": []})
    )
    (run_folder / "flags.json").write_text(json.dumps({"n_what": 5, "relation": "none", "image_shape": [50, 50]}))
    (run_folder / "versions.json").write_text(
        json.dumps({"tensorflow": "2.21.0", "git_commit": "abc123", "command": ["/x/sqair/train.py", "--seed", "0"]})
    )
    figure = Figure((9, 3))
    figure.subplots().plot([0, 1])
    drawing.save(figure, [folder / "curves.png"], "Curves", "How it learned.")
    drawing.save(figure, [folder / "figure4.png"], "Likelihoods", "Bars.")
    drawing.save(figure, [folder / "sequences.png"], "Sequences", 'Balls & "boxes" around them.')
    frames = [Image.fromarray(np.full((40, 120), 60 * i, np.uint8)) for i in range(4)]
    drawing.save_gif(frames, folder / "sequences.gif", "Rollout", "Balls that move.")
    (folder / ".half.png").write_bytes(b"not finished")
    result = run_command("eval.page", "--results", folder, "--command", "./run.sh small")
    assert result.returncode == 0, result.stderr
    assert list(folder.glob("*.part")) == []
    return folder


class _Page(html.parser.HTMLParser):
    """Counts tags and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.ids, self.targets, self.text = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.add(attributes.get("id"))
        if tag == "img":
            self.images.append(attributes)
        self.targets += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.text.append(data)


def test_everything_is_on_the_page_and_in_one_file(results):
    text = (results / "index.html").read_text()
    found = _Page(text)
    shown = " ".join(found.text)
    for part in (
        "399.5 ± 3.1",
        "R-SQAIR <script>",
        "-123.456",
        "n_what",
        "50, 50",
        "2.21.0",
        "abc123",
        "./run.sh small",
        "python -m sqair.train --seed 0",
        "python -m eval.page --results",
    ):
        assert part in shown, part
    assert "script" not in found.tags
    assert [image["alt"] for image in found.images] == [
        'Balls & "boxes" around them.',
        "Bars.",
        "Balls that move.",
        "How it learned.",
    ]
    stored = [base64.b64decode(image["src"].split(",")[1]) for image in found.images]
    assert stored == [(results / name).read_bytes() for name in PICTURES]
    assert all(target.startswith(("data:", "#")) for target in found.targets)
    assert {target[1:] for target in found.targets if target.startswith("#")} <= found.ids
    assert {"main", "nav", "header", "footer", "figcaption", "caption"} <= set(found.tags)


def test_it_opens_with_figure_figure_4_and_headline_tables_and_folds_the_others(results):
    main = (results / "index.html").read_text().split("<main>")[1]
    folded = re.findall(r"<details><summary>([^<]*)</summary>(.*?)</details>", main, re.S)
    shown = re.sub(r"<details>.*?</details>", "", main, flags=re.S)
    places = [
        shown.index(text)
        for text in ("Balls &amp;", "Bars.", "399.5 ± 3.1", "None.", "-164.1", "Balls that move.", "How it learned.")
    ]
    assert places == sorted(places)
    inside = dict(folded)
    assert '<th scope="col">seeds</th>' in shown and '<th scope="row">SQAIR</th>' in shown
    assert "<h4>balls4mass64</h4>" in shown and shown.count('<div aria-label="table"') == 2
    assert "0.958" in inside["All metrics"] and "a wide table" in inside["By horizon"]
    assert "of boxes" in inside["Notes"] and "-123.456" in inside["Likelihoods"]
    assert not any(text in shown for text in ("0.958", "a wide table", "of boxes", "-123.456"))


def test_likelihoods_are_shown_where_there_is_no_other_table(tmp_path):
    (tmp_path / "likelihood.json").write_text(json.dumps({"results": [{"iwae": -123.456}]}))
    assert "<details>" not in page.build(tmp_path, "t")


def test_settings_tell_what_differs(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"run_{seed}").mkdir()
        (tmp_path / f"run_{seed}" / "flags.json").write_text(json.dumps({"seed": seed, "n_what": 5}))
    drawing.save_gif([Image.new("L", (4, 4))], tmp_path / "a.gif", "t", "d")
    text = page.build(tmp_path, "t")
    differ, same = (
        re.search(r"Settings that differ.*?</table>", text).group(),
        re.search(r"Settings of all.*?</table>", text).group(),
    )
    assert "seed" in differ and "run_1" in differ and "n_what" not in differ
    assert "n_what" in same and "seed" not in same


@pytest.mark.parametrize(
    "name, content, message",
    [
        (None, b"", "no table.md, likelihood.json, PNG or GIF in it"),
        ("figure.png", b"\x89PNG\r\n\x1a\n cut short", "figure.png: not a whole picture"),
        ("likelihood.json", b"{", "likelihood.json: not a JSON file"),
    ],
)
def test_bad_results_are_one_line(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    result = run_here("eval.page", "--results", tmp_path)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "index.html").exists()


def test_a_missing_folder_is_one_line(tmp_path):
    result = run_here("eval.page", "--results", tmp_path / "none")
    assert result.returncode == 1 and "none: no such folder" in result.stderr and result.stderr.count("\n") == 1


class Browser:
    """A headless Chromium, controlled by its DevTools protocol over a pipe; a context manager."""

    def __init__(self, profile):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect():  # Chromium reads commands from 3 and writes answers to 4
            a, b = os.dup(to_browser), os.dup(from_browser)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._process = subprocess.Popen(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self.events = b"", 0, []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    _session = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _message(self):
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], 60)[0], "the browser says nothing"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._write, json.dumps(request).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def wait_for(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._message())

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width, scheme", [(1280, "light"), (360, "dark")])
def test_a_browser_shows_it(results, tmp_path, width, scheme):
    with Browser(tmp_path / "profile") as browser:
        for domain in ("Page", "Network", "Log", "Runtime"):
            browser.call(f"{domain}.enable")
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        url = (results / "index.html").as_uri()
        browser.call("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired")
        sizes = browser.evaluate(
            "Promise.all([...document.images].map(i => i.decode().then("
            "() => [i.naturalWidth, i.naturalHeight, i.width])))"
        )
        overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        dom = browser.evaluate("document.documentElement.outerHTML")
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        is_seen = "[...document.querySelectorAll('td')].find(c => c.textContent == '{}').checkVisibility()"
        headline, other = (browser.evaluate(is_seen.format(text)) for text in ("399.5 ± 3.1", "0.958"))
        browser.evaluate(
            "[...document.querySelectorAll('summary')].find(s => s.textContent == 'All metrics').click() || true"
        )
        opened = browser.evaluate(is_seen.format("0.958"))
        picture = base64.b64decode(browser.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        events = browser.events
    # The pictures are there, and at their size.
    expected = [Image.open(results / name).size for name in PICTURES]
    assert [tuple(size[:2]) for size in sizes] == expected
    assert all(0 < size[2] <= max(width, 45 * 16) for size in sizes)  # wide ones scroll on their own
    assert (headline, other, opened) == (True, False, True)
    # Only the file was requested, and there were no errors.
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {address for address in asked if not address.startswith("data:")} == {url}
    trouble = [
        event
        for event in events
        if event["method"]
        in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed")
    ]
    assert trouble == []
    # It fits a phone, follows the scheme, and the table's text is text.
    assert overflow <= 0
    red = int(re.match(r"rgb\((\d+)", background).group(1))
    assert red == 255 if scheme == "light" else red < 60
    assert "399.5 ± 3.1" in dom and "&lt;script&gt;" in dom
    path = tmp_path / "screenshot.png"
    path.write_bytes(picture)
    with Image.open(path) as image:
        assert width - 20 <= image.width <= width and len(image.convert("L").getcolors()) > 50
