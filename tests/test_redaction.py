"""A secret that a person typed is in nothing that a run writes or prints, and what only looks like one stays readable."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyzero_trl import config, redaction
from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError, exit_code_of
from tinyzero_trl.report import write_report
from tinyzero_trl.runs import record

TINY = "+countdown=grpo-tiny"
CANARY = "canary-4711"
SECRET_KEYS = (
    *(
        "token",
        "hub_token",
        "hf_token",
        "use_auth_token",
        "api_token",
        "accessToken",
        "access_token",
        "auth_tokens",
        "HF_TOKEN",
    ),
    *(
        "key",
        "api_key",
        "apikey",
        "apiKey",
        "API-KEY",
        "access_key",
        "aws_access_key_id",
        "secret_key",
        "private_key",
        "account_key",
    ),
    *(
        "secret",
        "client_secret",
        "secrets",
        "aws_secret_access_key",
        "password",
        "passwd",
        "db_password",
        "passphrase",
        "user.password",
    ),
    *(
        "credential",
        "credentials",
        "auth",
        "basic_auth",
        "authorization",
        "Authorization",
        "authentication",
        "proxy_auth",
        "pwd",
    ),
)
READABLE_KEYS = (
    *(
        "tokenizer",
        "eos_token",
        "pad_token",
        "bos_token_id",
        "max_tokens",
        "num_tokens",
        "token_file",
        "tokenizer_path",
        "token_type",
    ),
    *(
        "max_tokens_per_microbatch",
        "soft_overlong_tokens",
        "key_column",
        "problem_key",
        "answer_key",
        "keys",
        "keyboard",
        "monkey",
    ),
    *(
        "author",
        "author_name",
        "token_level",
        "image_token",
        "secret_file",
        "password_file",
        "average_tokens_across_devices",
    ),
)
URLS = (
    *(
        "https://user:{}@host/rows.jsonl",
        "https://{}@host/rows.jsonl",
        "s3://id:{}@bucket/key",
        "https://user:a/{}/b@host:80/rows",
    ),
    *(
        "https://host/rows?token={}",
        "https://host/rows?a=1&api_key={}&b=2",
        "https://host/rows?sig={}",
        "https://host/r?X-Amz-Signature={}",
    ),
    *("https://host/rows?key={}", "https://host/#access_token={}", "http://u:{}@[::1]:8000"),
)


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_value_under_a_key_that_names_a_secret_is_blanked_wherever_it_stands(key: str) -> None:
    other = {"note": f"as in {CANARY}, twice {CANARY}", CANARY: 1}
    shapes: list[Any] = [{key: CANARY}, {"a": {"b": [{key: CANARY}]}}, {key: [CANARY, "x"]}, {key: {"user": CANARY}}]
    for content in shapes:
        assert CANARY not in json.dumps(redaction.redacted({**content, **other}))
    words = [
        f"trainer.{key}={CANARY}",
        f"trainer.model_init_kwargs={{{key}: {CANARY}}}",
        f"++a.b={{x: [{{'{key}': \"{CANARY}\"}}], c: d}}",
    ]
    assert CANARY not in redaction.redacted_command(["grpo.py", *words])
    for word in words:
        assert CANARY not in redaction.without_secrets(f"got {CANARY}", redaction.secrets_in_words([word]))


@pytest.mark.parametrize("key", READABLE_KEYS)
def test_a_key_that_only_looks_like_a_secrets_keeps_its_value(key: str) -> None:
    assert redaction.redacted({"a": {key: "value"}, "data": {"key": "column"}}) == {
        "a": {key: "value"},
        "data": {"key": "column"},
    }
    assert redaction.redacted_command([f"a.{key}=value", f"a={{{key}: value}}"]) == shlex.join(
        [f"a.{key}=value", f"a={{{key}: value}}"]
    )


@pytest.mark.parametrize("url", URLS)
def test_credentials_in_a_url_are_blanked_and_the_rest_of_it_is_not(url: str) -> None:
    text = redaction.without_secrets(f"cannot read {url.format(CANARY)!r}: refused")
    assert CANARY not in text
    assert text.startswith("cannot read '")
    assert text.endswith("': refused")
    content = redaction.redacted({"data": {"source": url.format(CANARY)}, "error": f"got {url.format(CANARY)}"})
    assert CANARY not in json.dumps(content)
    assert CANARY not in redaction.redacted_command([f"data.source={url.format(CANARY)}"])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "hf://datasets/org/name@main/f.json",
            "https://host/@scope/pkg?page=2",
            "http://host:8000/v1",
            "a@b.org",
            "outputs/a=b",
        ),
        *(
            "there is no key 'x'; it has token, key",
            "https://host/rows?split=train&columns=key",
            "Basic facts",
            "token: 5",
        ),
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redaction.without_secrets(text) == text
    assert redaction.redacted({"a": text}) == {"a": text}


def test_a_run_writes_and_prints_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        TINY,
        f"trainer.model_init_kwargs={{token: {CANARY}-1, headers: {{Authorization: '{CANARY}-2'}}}}",
        f"data.source='https://me:{CANARY}-3@host/rows.jsonl?key={CANARY}-4'",
        f"trainer.hub_token={CANARY}-5",
        f"trainer.run_name={CANARY}-6",
    ]
    monkeypatch.setenv("WANDB_API_KEY", f"{CANARY}-6")
    monkeypatch.setattr(sys, "argv", ["grpo.py", *words])
    cfg = compose(words)
    config.show(cfg)
    assert CANARY not in capsys.readouterr().out
    record.write_record(tmp_path, cfg, data={"source": cfg.data.source}, seeds={})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n')
    for file in (tmp_path / "run.yaml", write_report(tmp_path)):
        assert CANARY not in file.read_text()
    assert (
        yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["source"]
        == "https://<redacted>@host/rows.jsonl?key=<redacted>"
    )
    arguments = config.trainer_arguments(compose(words[:2] + words[3:4]), program="grpo")
    assert CANARY not in arguments.to_json_string()
    assert arguments.model_init_kwargs["token"] == f"{CANARY}-1"


def test_an_error_that_quotes_a_secret_is_printed_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    def program(words: list[str]) -> int:
        raise ConfigError(f"cannot read {words[0].partition('=')[2]}, password {CANARY}")

    assert exit_code_of(program, [f"data.source=https://me:{CANARY}@host/x", f"a={{password: '{CANARY}'}}"]) == 2
    assert capsys.readouterr().err == "error: cannot read https://<redacted>@host/x, password <redacted>\n"


def test_a_traceback_that_quotes_a_secret_is_printed_without_it() -> None:
    program = (
        "import sys\nfrom tinyzero_trl.redaction import hide_in_tracebacks\nhide_in_tracebacks(sys.argv[1:])\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError(sys.argv[1]) from error\n"
    )
    run = subprocess.run([sys.executable, "-c", program, f"trainer.hub_token={CANARY}"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr
    assert "KeyError" in run.stderr
    assert CANARY not in run.stderr


def test_the_name_of_an_environment_variable_is_no_secret_but_a_default_beside_it_is() -> None:
    words = ["trainer.hub_token=${oc.env:MY_TOKEN}", "trainer.push_to_hub_token=${oc.env:MY_TOKEN,abcdefgh}"]
    shown = redaction.redacted_command(words)
    assert "trainer.hub_token=${oc.env:MY_TOKEN}" in shown
    assert "abcdefgh" not in shown


def test_the_folder_of_a_shell_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/project")
    monkeypatch.setenv("OLDPWD", "/home/somebody/elsewhere")
    monkeypatch.setenv("DB_PWD", "correct-horse-battery")
    secrets = redaction.secrets_in_environment()
    assert not {"/home/somebody/project", "/home/somebody/elsewhere"} & secrets
    assert "correct-horse-battery" in secrets
