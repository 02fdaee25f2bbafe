"""The report: its figures against the files it read, its page in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from browser import CHROMEDRIVER, CHROMIUM, Browser
from run_folders import write_benchmarks, write_run
from tinyzero_trl.report import marked, percent, seconds_by_part, short, write_report
from tinyzero_trl.report.charts import charts
from tinyzero_trl.report.run_files import read_run

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run folder with its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "grpo-tiny-20261121-030000")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory):
    """A run that was evaluated on benchmarks alone, with its report."""
    folder = write_benchmarks(tmp_path_factory.mktemp("benchmarks") / "grpo-math")
    write_report(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """The same run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as window:
        yield window


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


# ---- figures


def test_the_headline_is_what_the_evaluations_say(run):
    page = (run / "report.html").read_text()
    base, final = (json.loads((run / "evaluation" / name / "summary.json").read_text()) for name in ("base", "final"))
    for metric in (base["metrics"]["pass@1"], final["metrics"]["pass@1"]):
        for end in ("value", "low", "high"):
            assert percent(metric[end]) in page
    gain = final["metrics"]["pass@1"]["value"] - base["metrics"]["pass@1"]["value"]
    assert f"{100 * gain:+.1f} points" in page
    assert "200 problems" in page


def test_every_part_the_issue_names_is_on_the_page(run):
    page = (run / "report.html").read_text()
    for words in (
        "How it learned",
        "What changed",
        "Attempts per response",
        "Answers verified in the thought",
        "3 numbers",
        "The same problems, as it learned",
        "What it took",
        "generation",
        "Resolved configuration",
        "learning_rate: 0.0003",
        "Xeon",
        "2.13.0+cpu",
        "7cfda08f0d6c",
    ):
        assert words in page, words
    drawn = [chart["id"] for chart in charts(read_run(run))]
    assert drawn == ["accuracy", "outcomes", "reward", "length", "entropy", "speed"]


def test_the_band_of_training_accuracy_is_an_interval_over_problems(run):
    files = read_run(run)
    assert len(files.batches) == files.num_steps == 60
    accuracy = {line["step"]: line["accuracy"] for line in files.train}
    for step, estimate in files.batches:
        assert estimate.n == 16
        assert estimate.value == pytest.approx(accuracy[step])
        assert estimate.low < estimate.value < estimate.high


def test_problems_are_shown_over_time_and_most_were_learned(run):
    problems = read_run(run).problems
    assert len(problems) == 6
    for row, responses in problems:
        assert set(row) == {"nums", "target"}
        assert [response.label for response in responses] == ["base", "step 20", "step 40", "trained"]
        assert [response.step for response in responses] == sorted(response.step for response in responses)
    learned = [r for _, r in problems if r[0].outcome != "correct" and r[-1].outcome == "correct"]
    assert len(learned) >= 4


def test_a_wrong_response_is_shown_with_why_it_is_wrong(run):
    responses = [response for _, times in read_run(run).problems for response in times]
    judged = [response for response in responses if response.label in ("base", "trained")]
    assert all(bool(response.explanation) == (response.outcome != "correct") for response in judged)
    page = write_report(run).read_text(encoding="utf-8")
    assert any(
        f'<p class="explanation">{response.explanation}</p>' in page for response in judged if response.explanation
    )


def test_seconds_add_up_to_the_whole_run(run):
    files = read_run(run)
    seconds = dict(seconds_by_part(files))
    assert set(seconds) == {"generation", "scoring", "training", "other"}
    assert sum(seconds.values()) == pytest.approx(files.train[-1]["seconds"])
    assert seconds["scoring"] == pytest.approx(60 * 0.04)


def test_the_mean_over_several_steps_of_a_log_line_counts_for_each(copy):
    lines = [{"step": step, "seconds": step, "reward": 0.5, "seconds/generation": 0.5} for step in (10, 20)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert dict(seconds_by_part(read_run(copy))) == {"generation": 10, "scoring": 0, "training": 0, "other": 10}


@pytest.mark.parametrize(
    ("number", "text"), [(12_345_678, "12.3\u202fM"), (3012, "3.0\u202fk"), (640_000, "640\u202fk"), (7, "7")]
)
def test_large_numbers_are_short(number, text):
    assert short(number) == text


def test_each_benchmark_has_its_figures_before_and_after_and_their_gain(benchmarked):
    page = (benchmarked / "report.html").read_text()
    section = page[page.index("On benchmarks") :].split("</section>")[0]
    for name, num_problems in (("math500", 120), ("aime24", 30), ("mine", 40)):
        card = section[section.index(f"<h3>{name}</h3>") :].split('<div class="card">')[0]
        assert f"{num_problems} problems, 4 responses each" in card
        assert "temperature 0.6, top-p 0.95, up to 4,096 tokens" in card
        for side in ("base", "final") if name != "mine" else ("final",):
            metrics = json.loads((benchmarked / "evaluation" / side / name / "summary.json").read_text())["metrics"]
            for metric in ("pass@1", "pass@4", "maj@4"):
                assert all(percent(metrics[metric][end]) in card for end in ("value", "low", "high")), (name, metric)
        assert f"{metrics['length/mean']['value']:,.0f}" in card
        assert percent(metrics["outcome/truncated"]["value"]) in card
        gains = [metrics["pass@1"]["value"]]
        if name != "mine":
            base = json.loads((benchmarked / "evaluation" / "base" / name / "summary.json").read_text())["metrics"]
            gains = [metrics["pass@1"]["value"] - base["pass@1"]["value"]]
        assert (f"{100 * gains[0]:+.1f}".replace("-", "−") in card) is (name != "mine")
        assert ("Not enough samples: " in card) is (name != "math500")
    assert "are too few for this difference" in section


def test_a_benchmark_that_cannot_be_read_is_left_out_and_said(benchmarked, tmp_path):
    shutil.copytree(benchmarked, tmp_path / "run")
    (tmp_path / "run" / "evaluation" / "base" / "math500" / "summary.json").write_text("{")
    page = page_of(tmp_path / "run")
    assert "The evaluation on math500 cannot be read" in page
    assert "<h3>aime24</h3>" in page


# ---- what a run may lack


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    page = page_of(tmp_path)
    for line in ("run.yaml cannot be read", "no training step", "The base model has no evaluation"):
        assert line in page


@pytest.mark.parametrize(
    "name", ["run.yaml", "metrics.jsonl", "rollouts", "evaluation", "evaluation/base", "evaluation/final"]
)
def test_any_part_may_be_missing(copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "Not in this report" in page_of(copy)


def test_files_that_were_cut_off_are_left_out(copy):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "rew')
    shard = copy / "rollouts" / "train-00000007.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (copy / "evaluation" / "final" / "summary.json").write_text("{")
    assert "evaluation/final cannot be read" in page_of(copy)
    files = read_run(copy)
    assert (files.num_steps, len(files.batches)) == (60, 59)


def test_the_last_checkpoint_stands_for_a_run_without_final_evaluation(copy):
    (copy / "evaluation" / "final").rename(copy / "evaluation" / "checkpoint-40")
    assert read_run(copy).trained["name"] == "checkpoint-40"
    assert "step 40" in page_of(copy)


def test_evaluations_of_different_problems_have_no_paired_gain(copy):
    other = write_run(copy.parent / "other", num_steps=1, num_problems=30)
    shutil.rmtree(copy / "evaluation" / "base")
    shutil.copytree(other / "evaluation" / "base", copy / "evaluation" / "base")
    page = page_of(copy)
    assert "there is no paired gain" in page
    assert "McNemar" not in page


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no run folder"):
        write_report(tmp_path / "none")


# ---- what a model may write


EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'> & \x00 {{ 7*7 }}"


def make_evil(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in [*folder.glob("rollouts/eval-*.parquet"), *folder.glob("evaluation/*/samples.parquet")]:
        rows = pq.read_table(path).to_pylist()
        pq.write_table(pa.Table.from_pylist([{**row, "completion": EVIL + row["completion"]} for row in rows]), path)
    text = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(
        text.replace("run_name: grpo-tiny", "run_name: '</pre><script>window.hacked=1</script>'")
    )
    return write_report(folder)


def test_what_a_model_writes_is_text_and_never_markup(copy):
    page = make_evil(copy).read_text()
    assert "<script>window.hacked" not in page
    assert "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "{{ 7*7 }}" in page


def test_tags_and_judged_lines_are_marked_after_escaping():
    html = str(marked("<think>\n1 < 2, no\n2 = 2, yes\n</think>"))
    assert '<span class="tag">&lt;think&gt;</span>' in html
    assert '<span class="judged-no">1 &lt; 2, no</span>' in html
    assert '<span class="judged-yes">2 = 2, yes</span>' in html


# ---- the page


@needs_browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_draws_every_plot_without_an_error_or_sideways_scroll(run, browser, width, is_dark):
    browser.open(run / "report.html", width=width, is_dark=is_dark)
    assert browser.console() == []
    sizes = browser.run(
        "return [...document.querySelectorAll('.plot')].map(plot => { const svg = plot.querySelector('svg.main-svg');"
        " const box = svg.getBoundingClientRect(); return [box.width, box.height, plot.querySelectorAll("
        "'.scatterlayer .trace').length] })"
    )
    assert len(sizes) == 6
    assert all(w > 200 and h > 150 and traces > 0 for w, h, traces in sizes), sizes
    assert browser.run("return document.documentElement.scrollWidth") == width
    widest = browser.run(
        "return Math.max(...[...document.querySelectorAll('.card, h1, .lead, .facts')].map(e => e.getBoundingClientRect().right))"
    )
    assert widest <= width
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) is is_dark


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_benchmarks_fit_their_cards_on_a_screen_and_on_a_phone(benchmarked, browser, width):
    browser.open(benchmarked / "report.html", width=width)
    assert browser.console() == []
    assert browser.run("return document.documentElement.scrollWidth") == width
    over = "return [...document.querySelectorAll('.card')].filter(card => card.scrollWidth > card.clientWidth).length"
    assert browser.run(over) == 0


@needs_browser
def test_an_open_page_follows_the_readers_colour_scheme(run, browser):
    browser.open(run / "report.html", width=1280)
    colour = "return document.querySelector('#plot-accuracy .xtick text').style.fill"
    light = browser.run(colour)
    browser.set_dark(True)
    for _ in range(50):
        if browser.run(colour) != light:
            break
        time.sleep(0.1)
    assert browser.run(colour) != light
    assert browser.console() == []


@needs_browser
def test_responses_scroll_inside_their_card_on_a_phone(run, browser):
    browser.open(run / "report.html", width=400)
    inner, outer = browser.run("const e = document.querySelector('.responses'); return [e.scrollWidth, e.clientWidth]")
    assert inner > 2 * outer


@needs_browser
def test_a_hostile_response_runs_nothing(copy, browser):
    page = make_evil(copy)
    browser.open(page, width=1280)
    assert browser.run("return window.hacked === undefined")
    assert browser.console() == []


@needs_browser
def test_a_page_without_any_data_has_no_error(tmp_path, browser):
    browser.open(write_report(tmp_path), width=400)
    assert browser.console() == []
    assert browser.run("return document.documentElement.scrollWidth") == 400


def test_the_page_loads_nothing_from_elsewhere(run):
    page = re.sub(r"<script>.*?</script>", "", (run / "report.html").read_text(), flags=re.S)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert "@import" not in page
    assert "url(" not in page
