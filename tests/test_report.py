"""Reports: the page's content from real searches, and the page itself in a real browser."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from robust_eval.evaluators.base import Evaluator
from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.report import write_report
from robust_eval.report.figures import COLOURS, ink_on
from robust_eval.report.rows import groups_of, rows_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='owned'</script><b>"


def run(job):
    if job["x"] == 3:
        raise ValueError(f"bad {job['x']}")
    if job["x"] == 4:
        while True:
            pass
    if job["x"] % 100 == 99:
        raise KeyError(job["x"])
    return float(job["x"])


@pytest.fixture(scope="module")
def jobs():
    """A real search with values, an exception and a hang."""
    kwargs = {"num_workers": 2, "job_timeout": 0.5, "memory_limit": "1GiB"}
    with Evaluator.create(run, method="process", method_kwargs=kwargs) as evaluator:
        evaluator.submit([{"x": x, "text": EVIL, "n": None, "f": 0.5} for x in range(8)])
        return evaluator.gather("ALL")


def data_of(page: str, name: str = "data"):
    """What the page gives to its script."""
    return json.loads(re.search(rf'<script id="{name}" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_who_ran_what_and_when_is_known(jobs):
    """Each job has the slot that ran it, its begin, end, memory and limit; one at a time in a slot."""
    rows = rows_of(jobs)
    assert {row.worker for row in rows} == {0, 1}
    assert {row.memory_limit for row in rows} == {1 << 30}
    for worker in (0, 1):
        spans = [(row.begin, row.end) for row in rows if row.worker == worker]
        assert all(begin <= end for begin, end in spans)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_internal_metadata_is_not_in_the_csv(jobs, tmp_path):
    """The columns that others rely on stay what they were."""
    with Evaluator.create(run, method="process") as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
        columns = list(evaluator.to_frame().columns)
    assert {"_worker", "_begun", "_memory_limit"} <= set(job.metadata)
    assert not [name for name in columns if "_worker" in name or "_begun" in name]


def test_the_page_has_everything_in_one_file(jobs, tmp_path):
    """Figures, failures and the table; no other file, no address that it would load."""
    page = write_report(jobs, tmp_path / "report.html", title="a <b>title</b>").read_text()
    assert "<title>a &lt;b&gt;title&lt;/b&gt;</title>" in page
    assert list(data_of(page, "plots")) == ["timeline", "objective", "memory", "durations"]
    table = data_of(page)
    assert table["columns"] == [
        "job", "outcome", "objective", "seconds", "MiB", "worker", "began", "x", "text", "n", "f", "message",
    ]  # fmt: skip
    assert len(table["rows"]) == 8
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page)
    assert "ValueError: bad 3" in page
    assert "busy" in page


def test_what_a_job_says_cannot_break_the_page(jobs, tmp_path):
    """Text of configurations and failures is text."""
    page = write_report(jobs, tmp_path / "report.html").read_text()
    assert EVIL not in page
    assert data_of(page)["rows"][0][8] == EVIL


def test_failures_are_grouped_by_kind_and_stack():
    """Alike are those of one kind from one place, whatever their values."""

    def failed(number, failure):
        job = Job(f"0.{number}", {}, None)
        job.fail(failure)
        return job

    def here(error):
        try:
            raise error
        except ValueError as caught:
            return Failure.from_exception(caught)

    stack = (
        'Current thread 0x1 (most recent call first):\n  File "/a/b.py", line 3 in run\n  File "/a/c.py", line 4 in go'
    )
    failures = [
        here(ValueError(1)),
        here(ValueError(2)),
        Failure("timeout", "late", stack=stack),
        Failure("crash", "code", exit_code=3),
        Failure("crash", "signal", signal="SIGSEGV"),
        Failure("cancelled", "it was closed after 1.5 s"),
    ]
    groups = groups_of(rows_of(map(failed, range(6), failures)))
    shared = {group.shared: group.job_ids for group in groups}
    assert next(iter(shared.values())) == ["0.0", "0.1"]
    assert shared["b.py:3 in run < c.py:4 in go"] == ["0.2"]
    assert {"exit code 3", "SIGSEGV", "it was closed after # s"} <= set(shared)


def test_kills_of_one_loop_are_one_group(tmp_path):
    """Wherever in the loop the kill came, and where it tore the stack; the lines that it has are shown."""
    source = tmp_path / "model.py"
    source.write_text("def run(job):\n    while True:\n        a = 1\n        b = 2\n        c = 3\n")
    head = "Current thread 0x1 (most recent call first):\n"
    stacks = [f'{head}  File "{source}", line {line} in run\n  File "{source}", li' for line in (3, 4, 5)]
    stacks += [f'{head}  File "', None]
    jobs = []
    for number, stack in enumerate(stacks):
        jobs.append(Job(f"0.{number}", {}, None))
        jobs[-1].fail(Failure("timeout", f"it ran {number}.5 s", stack=stack))
    groups = {group.shared: group.job_ids for group in groups_of(rows_of(jobs))}
    assert groups == {"model.py:3 in run": ["0.0", "0.1", "0.2"], "it ran # s": ["0.3", "0.4"]}


def test_what_is_written_on_a_colour_can_be_read():
    """Black or white, whichever has the contrast that WCAG 2 asks of text, 4.5."""

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for colour in COLOURS.values():
        dark, light = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_a_search_without_measurements_says_so(tmp_path):
    """Of jobs that nobody measured, and of no job at all, the page tells what is missing."""
    with Evaluator.create(run, method="serial") as evaluator:
        evaluator.submit([{"x": 1}, {"x": 2}])
        evaluator.gather("ALL")
        page = evaluator.report(tmp_path / "report.html").read_text()
    assert "Memory was not measured" in page
    assert list(data_of(page, "plots")) == ["objective"]
    empty = write_report([], tmp_path / "empty.html").read_text()
    assert "No job failed" in empty
    several = Job("0.0", {}, None)
    several.set_output((1.0, 2.0))
    several.metadata["timestamp_gather"] = 4000.0
    page = write_report([several, Job("0.1", {}, None)], tmp_path / "several.html").read_text()
    assert "objective_1" in page
    assert "1 h 6 min" in page
    assert [row[1] for row in data_of(page)["rows"]] == ["ok", "open"]


def test_a_notebook_shows_jobs_and_evaluators():
    """Outcomes, the last failures, every value escaped; before and after."""
    with Evaluator.create(run, method="serial") as evaluator:
        evaluator.submit([{"x": 1, "text": EVIL}, {"x": 3}])
        first, second = evaluator.gather("ALL")
        assert "<th style='text-align:left'>ok</th><td>1</td>" in evaluator._repr_html_()
        assert "ValueError: bad 3" in evaluator._repr_html_()
    assert EVIL not in first._repr_html_()
    assert "document.title" in first._repr_html_()
    assert "ValueError: bad 3" in second._repr_html_()
    job = Job("0.0", {}, None)
    assert "ready" in job._repr_html_()
    job.metadata.update(duration=0.12345, peak_memory=3 << 20, timestamp_gather=None)
    assert "0.123 s" in job._repr_html_()
    assert "3.0 MiB" in job._repr_html_()
    assert "timestamp_gather" not in job._repr_html_()
    job.metadata.update(duration="long", peak_memory=[1])
    assert "long" in job._repr_html_()


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    """A real headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, jobs):
    """The small search, and one of several thousand jobs."""
    folder = tmp_path_factory.mktemp("pages")
    with Evaluator.create(run, method="thread", method_kwargs={"num_workers": 2}) as evaluator:
        evaluator.submit([{"x": x} for x in range(5, 5005)])
        many = evaluator.gather("ALL")
    for number, job in enumerate(many):  # as a pool would have noted it
        job.metadata.update(_worker=number % 8, _begun=number / 8, duration=1.0, peak_memory=1 << 20)
    return write_report(jobs, folder / "small.html"), write_report(many, folder / "large.html")


# No part is wider than the window, and no legend lies on what it explains.
_FITS = """() => document.documentElement.scrollWidth === innerWidth
  && [...document.querySelectorAll(".figure > div")].every((figure) =>
  figure.querySelector(".legend").getBoundingClientRect().bottom
    <= figure.querySelector(".nsewdrag").getBoundingClientRect().top + 1)"""


def opened(browser, page: Path, **how):
    """The page, what it complained of, and what it asked for."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900}, **how)
    said, asked = [], []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_selector("#plot-durations .main-svg", timeout=60_000)
    return tab, said, asked


@pytest.mark.timeout(240)
def test_the_page_works_in_a_browser(browser, pages):
    """It draws every figure, complains of nothing, loads nothing; the table sorts and filters; dark and light."""
    tab, said, asked = opened(browser, pages[0], color_scheme="light")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.title() == "search"
    assert tab.locator(".main-svg").count() >= 4
    assert tab.locator("#jobs tbody tr").count() == 8

    def column(index: int) -> list[str]:
        return tab.locator(f"#jobs tbody tr td:nth-child({index})").all_inner_texts()

    tab.locator("#jobs th", has_text="objective").click()
    assert column(3)[:3] == ["0", "1", "2"]
    tab.locator("#jobs th", has_text="objective").click()
    assert column(3)[:3] == ["7", "6", "5"]
    assert column(3)[-2:] == ["", ""]
    assert tab.locator("#jobs th[aria-sort=descending]").inner_text() == "objective"
    tab.locator("#jobs th button", has_text="x").first.focus()
    tab.keyboard.press("Enter")
    assert column(8) == sorted(column(8))
    tab.select_option("#outcome", "timeout")
    assert column(8) == ["4"]
    tab.select_option("#outcome", "")
    tab.fill("#filter", "x>=5")
    assert sorted(column(8)) == ["5", "6", "7"]
    tab.fill("#filter", "bad 3")
    assert column(8) == ["3"]
    tab.locator("summary").first.click()
    assert tab.locator("details pre").first.is_visible()

    def back() -> str:
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    assert back() == "rgb(255, 255, 255)"
    tab.click("#theme")
    assert back() == "rgb(18, 22, 28)"
    for width in (420, 1300):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_function(_FITS)
    assert said == []
    tab.close()


@pytest.mark.timeout(240)
def test_the_page_works_with_thousands_of_jobs(browser, pages):
    """WebGL draws them, the table shows a page of them, and begins dark where the system is."""
    tab, said, _ = opened(browser, pages[1], color_scheme="dark")
    assert said == []
    assert tab.locator("canvas.gl-canvas").count() > 0
    assert tab.locator("#jobs tbody tr").count() == 100
    assert tab.inner_text("#page") == "1 / 50"
    tab.click("#next")
    assert tab.inner_text("#page") == "2 / 50"
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.close()
