"""The page in headless Chromium: opens, filters, is moved through by keys, and shows the numbers of the run folder."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

import pytest

from tests.videostr.report.browser import Browser, Page, chromium, executable
from tests.videostr.report.synthetic import HOSTILE, synthetic_run
from videostr.report.page import write_report
from videostr.timeline import Timeline
from videostr.traces import TraceRow

pytestmark = [
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path: apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("websockets") is None, reason="websockets is not installed; vLLM brings it"
    ),
]
TRACES = 2000
COUNT = "document.getElementById('count').value"
CARDS = """[...document.querySelectorAll('.rollout')].map(card => ({
  n: Number(card.dataset.rollout),
  total: card.querySelector('.total').textContent,
  head: card.querySelector('header').textContent,
  text: card.querySelector('.completion').textContent,
  folded: [...card.querySelectorAll('details.graph')].every(graph => !graph.open),
  notes: [...card.querySelectorAll('.parts li')].map(note => note.textContent),
  parts: Object.fromEntries(
    [...card.querySelectorAll('.part')].map(part => [part.dataset.part, part.querySelector('.value').textContent])),
}))"""
SIZES = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def rows(run: Path) -> list[TraceRow]:
    return list(_rows)


_rows: list[TraceRow] = []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    _rows[:] = synthetic_run(folder, TRACES)
    return write_report(folder)


@pytest.fixture
def page(browser: Browser, run: Path) -> Iterator[Page]:
    """The report, opened; whatever a test does, nothing is loaded and the console stays empty."""
    with browser.page() as tab:
        tab.open(run)
        yield tab
        assert tab.run("document.title") == "synthetic · VideoSTR"
        assert tab.errors == []
        assert set(tab.requests) == {run.as_uri()}


def set_field(page: Page, name: str, value: object) -> None:
    """As a user would: the field's value and its event."""
    page.run(
        f"(() => {{ const f = document.getElementById('filters').elements.{name}; f.value = {json.dumps(str(value))};"
        "f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def counted(prompts: int, rollouts: int, groups: int = TRACES // 8, traces: int = TRACES) -> str:
    first = f"{prompts:,}" if prompts == groups else f"{prompts:,} of {groups:,}"
    second = f"{rollouts:,}" if rollouts == traces else f"{rollouts:,} of {traces:,}"
    return f"{first} prompts, {second} rollouts"


def expected(rows: Sequence[TraceRow]) -> str:
    return counted(len({(row["step"], row["record_id"]) for row in rows}), len(rows))


def shown(page: Page) -> tuple[int, str, int]:
    """(step, record, rollout) in the detail pane, once it shows what is chosen."""
    page.wait(
        "document.getElementById('detail').dataset.group === document.querySelector('.row[aria-selected=true]')?.dataset.group"
    )
    step = page.run("document.querySelector('#detail .about').children[1].textContent")
    record = page.run("document.querySelector('#detail .record').textContent")
    return (
        int(step.removeprefix("step ")),
        record,
        int(page.run("document.getElementById('detail').dataset.rollout")),
    )


# ------------------------------------------------------------------------------------------------- filters


def test_it_opens_with_everything(page: Page, rows: list[TraceRow]) -> None:
    assert page.run(COUNT) == counted(TRACES // 8, TRACES)
    step, record, rollout = shown(page)
    assert step == 10  # the newest
    best = max(
        (row for row in rows if (row["step"], row["record_id"]) == (step, record)),
        key=lambda row: row["total"],
    )
    assert rollout == best["rollout"]


def test_filters_agree_with_the_dumps(page: Page, rows: list[TraceRow]) -> None:
    set_field(page, "low", 1.5)
    set_field(page, "high", 2.25)
    chosen = [row for row in rows if 1.5 <= row["total"] <= 2.25]
    assert 0 < len(chosen) < TRACES
    assert page.run(COUNT) == expected(chosen)
    index = page.run(
        "[...document.getElementById('filters').elements.family.options].find(o => o.text === 'order').value"
    )
    set_field(page, "family", index)
    chosen = [row for row in chosen if row["family"] == "order"]
    assert page.run(COUNT) == expected(chosen)
    set_field(page, "step", 7)
    assert page.run(COUNT) == expected([row for row in chosen if row["step"] == 7])
    page.run("document.querySelector('#filters button[type=reset]').click()")
    page.wait(f"{COUNT} === {json.dumps(counted(TRACES // 8, TRACES))}")
    set_field(page, "find", "question 12: synthetic/12")
    assert page.run(COUNT) == expected([row for row in rows if row["record_id"] == "synthetic/12"])


@pytest.mark.parametrize(
    ("fault", "has"),
    [
        (0, lambda row: row["finish_reason"] == "LENGTH"),
        (2, lambda row: row["absence"] != ""),
        (3, lambda row: json.loads(row["parts"])["format"] < 1),
        (4, lambda row: json.loads(row["parts"])["answer"] == 0),
    ],
)
def test_failures_are_filtered(page: Page, rows: list[TraceRow], fault: int, has: object) -> None:
    set_field(page, "fault", fault)
    chosen = [row for row in rows if has(row)]  # type: ignore[operator]
    assert 0 < len(chosen) < TRACES
    assert page.run(COUNT) == expected(chosen)
    words = page.run(f"document.getElementById('filters').elements.fault.options[{fault + 1}].text")
    assert words.endswith(f"({len(chosen)})")


def test_nothing_found_is_said_and_undone(page: Page) -> None:
    set_field(page, "find", "no such prompt")
    assert page.run(COUNT) == counted(0, 0)
    assert "No rollout passes" in page.run("document.getElementById('detail').textContent")
    set_field(page, "find", "")
    assert shown(page)[0] == 10


def test_prompts_are_sorted_by_mean_reward(page: Page, rows: list[TraceRow]) -> None:
    set_field(page, "sort", "low")
    means: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        means.setdefault((row["step"], row["record_id"]), []).append(row["total"])
    lowest = sorted(fmean(totals) for totals in means.values())[:5]
    found = page.run(
        "[...document.querySelectorAll('.row')].slice(0, 5).map(r => Number(r.querySelector('b').textContent))"
    )
    assert found == pytest.approx(lowest, abs=0.0051)


# ----------------------------------------------------------------------------------------- what is shown


def test_a_group_shows_its_numbers(page: Page, rows: list[TraceRow]) -> None:
    step, record, _ = shown(page)
    mine = [row for row in rows if (row["step"], row["record_id"]) == (step, record)]
    mine.sort(key=lambda row: -row["total"])
    cards = page.run(CARDS)
    assert [card["n"] for card in cards] == [row["rollout"] for row in mine]
    for card, row in zip(cards, mine, strict=True):
        assert card["total"] == f"{row['total']:.3f}"
        assert f"advantage {round(row['advantage'], 2) + 0.0:+.2f}" in card["head"]
        assert f"{row['tokens']} tokens" in card["head"]
        assert card["parts"] == {
            name: f"{value + 0.0:.2f}" for name, value in json.loads(row["parts"]).items()
        }
        assert card["notes"][0] == json.loads(row["notes"])[0]
        assert card["folded"]
        assert row["text"].split("<graph>")[0][:100] in card["text"]
    # Frames with both graphs over them, and both from above, at 8 times.
    assert page.run("document.querySelectorAll('svg.scene.over image').length") == 8
    nodes = sum(len(frame["nodes"]) for frame in json.loads(mine[0]["true_graph"])["frames"])
    stated = bool(mine[0]["predicted_graph"])
    assert page.run("document.querySelectorAll('.scene .ghost').length") == 2 * nodes
    assert page.run("document.querySelectorAll('.scene .node').length") == 2 * nodes * stated


def test_nodes_are_drawn_where_they_are(page: Page, rows: list[TraceRow]) -> None:
    step, record, _ = shown(page)
    row = next(row for row in rows if (row["step"], row["record_id"]) == (step, record))
    first = json.loads(row["true_graph"])["frames"][0]["nodes"]
    rings = "[...document.querySelector('svg.scene.over').querySelectorAll('.ghost')]"
    found = page.run(f"{rings}.map(c => [c.getAttribute('cx'), c.getAttribute('cy')].map(Number))")
    side = 176
    wanted = [[min(max(v / 1000 * side, 5), side - 5) for v in node["pos"]] for node in first]
    assert [v for pair in found for v in pair] == pytest.approx(
        [v for pair in wanted for v in pair], abs=0.02
    )


def test_keys_move_through_prompts_rollouts_and_steps(page: Page, rows: list[TraceRow]) -> None:
    start = shown(page)
    page.press("j")
    below = shown(page)
    assert below[:2] != start[:2]
    page.press("k")
    assert shown(page) == start
    page.press("l")
    ordered = sorted(
        (row for row in rows if (row["step"], row["record_id"]) == start[:2]), key=lambda row: -row["total"]
    )
    page.wait(f"document.getElementById('detail').dataset.rollout === '{ordered[1]['rollout']}'")
    page.press("h")
    page.wait(f"document.getElementById('detail').dataset.rollout === '{ordered[0]['rollout']}'")
    page.press("[")
    assert shown(page)[:2] == (start[0] - 1, start[1])
    page.press("]")
    assert shown(page)[:2] == start[:2]
    assert page.run("[...document.querySelectorAll('.visits button')].length") == 5
    page.press("g")
    assert page.run("[...document.querySelectorAll('details.graph')].every(d => d.open)")
    page.press("t")
    assert page.run("document.querySelectorAll('.ghost').length") == 0
    page.press("p")
    assert page.run("document.querySelectorAll('.node').length") == 0
    page.press("p")
    assert page.run("document.querySelectorAll('.node').length") > 0
    page.press("/")
    assert page.run("document.activeElement.name") == "find"
    page.press("j")  # now a letter
    assert page.run("document.activeElement.value") == "j"
    page.press("Escape")
    assert page.run("document.activeElement === document.body")
    assert page.run("document.getElementById('keys').getBoundingClientRect().height > 0")


def test_an_address_leads_to_a_trace(browser: Browser, run: Path) -> None:
    with browser.page() as tab:
        tab.open(run, anchor="#trace=3/synthetic%2F7/5")
        tab.wait("document.getElementById('detail').dataset.rollout === '5'")
        assert shown(tab) == (3, "synthetic/7", 5)
        tab.press("j")
        tab.wait("!location.hash.includes('synthetic%2F7/')")
        assert tab.errors == []


def test_hostile_texts_are_shown_and_do_nothing(page: Page, rows: list[TraceRow]) -> None:
    for hostile in HOSTILE:
        row = next(row for row in rows if hostile in row["text"])
        # The rollout shown before may bear the same record and number, at another step.
        page.run("document.getElementById('detail').dataset.rollout = ''")
        page.run(
            f"location.hash = '#trace={row['step']}/{row['record_id'].replace('/', '%2F')}/{row['rollout']}'"
        )
        page.wait(f"document.querySelector('#detail .record').textContent === '{row['record_id']}'")
        page.wait(f"document.getElementById('detail').dataset.rollout === '{row['rollout']}'")
        assert shown(page) == (row["step"], row["record_id"], row["rollout"])
        text = page.run(
            "(() => { const box = document.querySelector('.rollout[aria-current=true] .completion').cloneNode(true);"
            "box.querySelectorAll('summary').forEach(s => s.remove()); return box.textContent; })()"
        )
        plain = "".join(c for c in hostile if c.isascii() and c.isprintable())
        assert (
            plain[:40] in "".join(c for c in text if c.isascii() and c.isprintable())
            or "‹202e›gnp.exe" in text
        )
        assert page.run("document.querySelectorAll('#detail script, #detail img').length") == 0
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


# --------------------------------------------------------------------------------- figures and readability


def test_figures_agree_with_the_metrics(page: Page, run: Path) -> None:
    metrics = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
    latest = page.run("document.querySelector('[data-chart=\"Entropy\"] output').textContent")
    assert float(latest) == pytest.approx(metrics[-1]["entropy"], rel=5e-3)
    points = json.loads(
        page.run("document.querySelector('[data-chart=\"Reward parts\"] svg').dataset.points")
    )
    assert [name for name, _ in points["s"]] == ["answer", "graph", "format"]
    assert [float(v) for v in points["s"][0][1]] == pytest.approx(
        [row["reward/answer"] for row in metrics], rel=5e-3
    )
    latest = page.run("document.querySelector('[data-chart=\"Step time\"] output').textContent")
    assert float(latest) == pytest.approx(metrics[-1]["time/step"], rel=5e-3)
    assert page.run("document.querySelector('.tile:last-child b').textContent") == "1"


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_nothing_overflows_and_text_has_contrast(browser: Browser, run: Path, width: int, dark: bool) -> None:
    with browser.page() as tab:
        tab.open(run, width=width, dark=dark)
        shown(tab)
        tab.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(CUT_OFF) == []
        assert tab.run(LOW_CONTRAST) == []
        assert tab.errors == []


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_lanes_of_workers_stand_next_to_their_names(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    synthetic_run(tmp_path, 200)
    names = [f"rollout-engine-{i}" for i in range(9)] + ["learner-rank-0", "weight-sync"]
    clock = [0.0]
    noted = Timeline(lambda: clock[0])
    for step in (1, 2, 3):
        for number, name in enumerate(names):
            noted.note(name, "sample" if number < 9 else "update" if number < 10 else "sync")
            clock[0] += 5.0
        with (tmp_path / "timeline.jsonl").open("a") as file:
            file.write(noted.drain(step).line() + "\n")
    with browser.page() as tab:
        tab.open(write_report(tmp_path), width=width, dark=dark)
        lanes = tab.run(LANES)
        # The last engine is the least busy one: it has no lane but a row of the table.
        assert [name for name, _ in lanes] == [*names[:8], "1 more", *names[9:]]
        assert [distance is None for _, distance in lanes] == [name == "1 more" for name, _ in lanes]
        assert all(abs(distance) <= 1.5 for _, distance in lanes if distance is not None)
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(CUT_OFF) == []
        assert tab.run(LOW_CONTRAST) == []
        assert tab.run("document.querySelectorAll('#time tbody tr').length") == 11
        assert tab.errors == []


LANES = """[...document.querySelectorAll('.lanes .names span')].map((name) => {
  const middle = (box) => (box.top + box.bottom) / 2, at = middle(name.getBoundingClientRect());
  const bars = [...document.querySelectorAll('svg.timeline path')].filter(
    (bar) => bar.querySelector('title').textContent.includes(`, ${name.querySelector('b').textContent}:`));
  return [name.querySelector('b').textContent, bars.length ? middle(bars[0].getBoundingClientRect()) - at : null];
})"""
"""Name of every lane, and how far below its middle that of its bars lies, in pixels."""
CUT_OFF = """[...document.querySelectorAll('main, main *:not(svg *)')].filter((element) => {
  const style = getComputedStyle(element);
  return style.overflowX === 'hidden' && style.textOverflow !== 'ellipsis' && element.scrollWidth > element.clientWidth + 1;
}).map((element) => `${element.tagName}.${element.className} ${element.scrollWidth} > ${element.clientWidth}`)"""
"""Elements that hide a part of what is in them."""
LOW_CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const rgb = parse(getComputedStyle(e).backgroundColor);
      if (rgb.length < 4 || rgb[3] > 0.99) return rgb;
    }
    return [255, 255, 255];
  };
  const written = (element) => [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const found = new Set();
  for (const element of document.querySelectorAll('main *:not(svg *)')) {
    if (!written(element) || element.closest('.dim') || !element.getClientRects().length) continue;
    const pair = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) found.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
})()"""
"""Elements with text whose contrast is below that of WCAG 2.2, level AA."""


NEXT_PROMPT = """(async () => {
  const times = [], detail = document.getElementById('detail');
  for (let i = 0; i < 100; i++) {
    const before = detail.dataset.group, from = performance.now();
    document.dispatchEvent(new KeyboardEvent('keydown', { key: 'j' }));
    while (detail.dataset.group === before) await new Promise(requestAnimationFrame);
    times.push(performance.now() - from);
  }
  return times;
})()"""
"""Milliseconds from a key to the next prompt on the screen, 100 times: every 16th is in another chunk."""


def test_ten_thousand_traces(browser: Browser, tmp_path: Path) -> None:
    """Prints the figures that docs/report.md gives."""
    rows = synthetic_run(tmp_path / "big", 10_000)
    started = time.monotonic()
    path = write_report(tmp_path / "big")
    written = time.monotonic() - started
    with browser.page() as tab:
        opened = []
        for _ in range(3):
            tab.open(path)
            opened.append(float(tab.run("document.documentElement.dataset.ready")))
        filtered = [_filtered(tab, fault) for fault in ("0", "2", "3", "4", "") * 3]
        assert tab.run(COUNT) == counted(1250, 10_000, 1250, 10_000)
        chosen = tab.run(NEXT_PROMPT)
        assert tab.run("document.querySelectorAll('.row').length") < 40
        assert tab.errors == []
    columns = ("text", "prompt", "true_graph", "predicted_graph")
    text = sum(len(str(row[column])) for row in rows for column in columns)  # type: ignore[literal-required]
    page = path.read_text()
    frames = (
        len(re.findall("data:image", page)),
        sum(map(len, re.findall(r'id="clip-\d+">[^<]*', page))) / 2**20,
    )
    print(  # noqa: T201
        f"\n10,000 traces of {text / 2**20:.0f} MiB: page {len(page) / 2**20:.1f} MiB, of which {frames[0]} frames take "
        f"{frames[1]:.1f} MiB; written in {written:.1f} s, ready after {median(opened):.0f} ms, filtered in "
        f"{median(filtered):.0f} ms, next prompt after {median(chosen):.0f} ms, at most {max(chosen):.0f} ms"
    )
    assert len(page) < 40 * 2**20
    assert median(filtered) < 500


def _filtered(tab: Page, fault: str) -> float:
    """Milliseconds from a filter's change to the next picture."""
    return float(
        tab.run(
            "(async () => { const from = performance.now(), f = document.getElementById('filters').elements.fault;"
            f"f.value = '{fault}'; f.dispatchEvent(new Event('input', {{bubbles: true}}));"
            "await new Promise(requestAnimationFrame); return performance.now() - from; })()"
        )
    )
