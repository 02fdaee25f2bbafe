"""The documents work as they stand: examples, tables, links, no path of anybody's machine."""

import re
from pathlib import Path

import pytest

from tinyzero_trl.cli import main
from tinyzero_trl.rewards import exact_format, for_trl
from tinyzero_trl.task import Outcome, prompts, resolve
from tinyzero_trl.tasks import find_task
from tinyzero_trl.tasks.countdown import TASK, equation, graded, verify

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
NUMS, TARGET = [19, 36, 55], 72


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A folder with every file that README.md and CONTRIBUTING.md show, and the working directory set to it."""
    for page in ("README.md", "CONTRIBUTING.md"):
        for name, text in EXAMPLE.findall((ROOT / page).read_text(encoding="utf-8")):
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_task_of_the_guide_loads_words_and_judges(example):
    task = find_task("letters.py:TASK")
    train, held_out = (task.load(split=split, num_rows=50, seed=1) for split in ("train", "test"))
    assert not {str(row) for row in train} & {str(row) for row in held_out}
    row = prompts(train, task.formats["base"])[0]
    assert row["prompt"].endswith(row["prefill"])
    answer = row["word"].count(row["letter"])
    columns = {name: [row[name]] * 4 for name in ("word", "letter", "prefill")}
    completions = [f"x</think><answer>{given}</answer>" for given in (answer, answer + 1)] + ["", "a" * 3_000_000]
    scores = for_trl(task.rewards[task.solved], name="count")(prompts=[""] * 4, completions=completions, **columns)
    assert scores == [1.0, 0.0, 0.0, 0.0]


def test_the_task_of_the_readme_is_prepared_and_judges(example, capsys):
    task = find_task("reversal.py:TASK")
    responses = ["x</think><answer>dcba</answer>", "x</think><answer>abcd</answer>", "", "a" * 3_000_000]
    assert [task.verify(response, word="abcd").outcome for response in responses] == [
        *(Outcome.correct, Outcome.wrong_value, Outcome.no_answer, Outcome.no_answer),
    ]
    assert [task.rewards[task.solved](response, word="abcd") for response in responses] == [1.0, 0.0, 0.0, 0.0]
    words = ["prepare", "reversal.py:TASK", "--source", "generated", "--num_train", "20", "--num_test", "5"]
    assert main(words) == 0
    assert "backwards" in capsys.readouterr().out


def test_the_task_of_the_guide_is_prepared_and_its_rewards_hold_on_reference_answers(example, capsys):
    assert main(["prepare", "letters.py:TASK", "--source", "generated", "--num_train", "20", "--num_test", "5"]) == 0
    assert "5 reference answers earn 1.0" in capsys.readouterr().out


def test_the_format_of_the_guide_words_a_problem(example):
    terse = resolve("terse.py:terse", among=TASK.formats, kind="format")
    worded = terse({"nums": NUMS, "target": TARGET})
    assert str(NUMS) in worded["prompt"][0]["content"]
    assert worded["prompt"][-1] == {"role": "assistant", "content": worded["prefill"]}


def test_the_reward_of_the_guide_pays_for_short_thoughts_that_end_right(example):
    brief = resolve("brief.py:brief", among=TASK.rewards, kind="reward")
    right, wrong = "<answer>55 + 36 - 19</answer>", "<answer>55 - 36 + 19</answer>"
    scores = [
        brief(f"<think>{thought}</think>{answer}", nums=NUMS, target=TARGET)
        for thought, answer in (("x" * 200, right), ("x" * 1000, right), ("x" * 9000, right), ("x" * 200, wrong))
    ]
    assert scores == [0.9, 0.5, 0.0, 0.0]


def test_the_recipe_of_the_guide_composes(example):
    from tinyzero_trl.config import RECIPES, checks, compose

    folder = example / "recipes"
    (folder / "countdown").mkdir(parents=True)
    for path in [RECIPES / "grpo.yaml", *(RECIPES / "countdown").glob("*.yaml"), example / "grpo-tiny-brief.yaml"]:
        to = folder if path.parent == RECIPES else folder / "countdown"
        (to / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    cfg = compose(["+countdown=grpo-tiny-brief"], recipes=folder)
    assert cfg.rewards == {"equation": 1.0, "brief.py:brief": 0.2}
    assert cfg.model.model_name_or_path == "tiny"
    assert list(checks.parts(cfg).rewards) == ["equation", "brief.py:brief"]


def test_every_row_of_the_verifier_table_earns_what_it_says():
    text = (ROOT / "docs/verifier.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(<.*)`(.*?) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    for shown, remark, outcome, *scores in rows:
        response = shown.replace("⏎", "\n").replace(r"\|", "|")
        assert verify(response, nums=NUMS, target=TARGET, is_truncated="token limit" in remark).outcome == outcome, (
            shown
        )
        earned = [
            equation(response, nums=NUMS, target=TARGET),
            exact_format(response),
            graded(response, nums=NUMS, target=TARGET),
        ]
        assert earned == [float(score) for score in scores], shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_documents_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_and_scripts_named_in_the_documents_exist(page):
    text = page.read_text(encoding="utf-8")
    for task, name in re.findall(r"\+(countdown|math|multiplication)=([\w.-]+)", text):
        assert (ROOT / "recipes" / task / f"{name}.yaml").is_file() or name == "grpo-tiny-brief", f"+{task}={name}"
    for script in re.findall(r"(?:python )?(scripts/\w+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_page_of_recipes_is_what_the_recipes_say_of_themselves(capsys):
    from tinyzero_trl.config import list_recipes

    assert main(["recipes", "--markdown"]) == 0
    tables = capsys.readouterr().out
    for recipe in list_recipes():
        row = f"| `+{recipe.task}={recipe.name}` | {recipe.model} | {recipe.hardware} | {recipe.expectation} |"
        assert row in tables
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert text[text.index("## ") :] == tables, "make recipes-page"


# The guide names files that its reader writes.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page):
    text = EXAMPLE.sub("", page.read_text(encoding="utf-8"))
    rooms = "|".join(path.name for path in (ROOT / "src/tinyzero_trl").iterdir() if path.is_dir())
    named = set(re.findall(rf"`((?:src|tests|scripts|docs|recipes|{rooms})/[\w/.-]+\.(?:py|yaml|md|sbatch))`", text))
    assert [
        name for name in named if not any((base / name).is_file() for base in (ROOT, ROOT / "src/tinyzero_trl"))
    ] == []


def test_the_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_names_every_room_and_module_and_only_those_there_are():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("src/tinyzero_trl/\n")[1].split("```")[0]
    package = ROOT / "src/tinyzero_trl"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"\b(\w+)\.py\b", tree)) == {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"(?:^  |, )(\w+)/", tree, re.M)) == rooms


def test_the_formats_and_rewards_of_every_task_are_listed():
    from tinyzero_trl.tasks import TASKS

    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for name, task in TASKS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{word}`" in row for word in [*task.formats, *task.rewards])
