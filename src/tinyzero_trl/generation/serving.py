"""`tinyzero serve +countdown=<recipe>`: starts the server of a recipe in its own terminal, for a run with generation.server=<url>."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tinyzero_trl.config import INSIST, check_host, names_recipe

DEFAULT_PORT = 8000


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C, SIGTERM, or the server ends by itself; returns the exit code."""
    parser = _parser()
    arguments, words = parser.parse_known_args(argv)
    if not names_recipe(words):
        raise ValueError(f"no recipe given; `tinyzero recipes` lists them\n{parser.format_usage()}".strip())
    host = check_host(arguments.host, insists=arguments.i_know_this_network_is_private)

    from tinyzero_trl import config
    from tinyzero_trl.config import generation
    from tinyzero_trl.estimate import sharding_of_recipe
    from tinyzero_trl.generation.engines import server_spec, token_file_of, weight_transfer
    from tinyzero_trl.generation.http_client import ServerError
    from tinyzero_trl.generation.server import Server
    from tinyzero_trl.models import checked_start

    cfg = config.compose([*words, "generation.engine=server"], program="grpo")
    generation.check_installed(cfg)
    shown = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}"
    cfg.generation.server = shown  # the value in the run that uses it, on which the way of the weights depends
    generation.check_engine(cfg, trains=False)
    # If the start is an adapter, the server loads the model below it; the trainer sends its own weights before the first completion.
    cfg.model.model_name_or_path = checked_start(cfg).location.path
    cfg.generation.weight_transfer = weight_transfer(cfg, sharding_of_recipe(cfg, words))
    token_file = (arguments.token_file or token_file_of(shown)).expanduser()
    server = Server(server_spec(cfg), log=arguments.log, token_file=token_file, host=host)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        server.start(port=arguments.port)
        server.wait_until_healthy(cfg.generation.seconds_to_start)
        print(f"token: {token_file} (only you can read it)\nlog: {arguments.log}", flush=True)
        print(
            f"train with it: tinyzero train {words[0]} generation.engine=server generation.server={shown}"
            + f" generation.weight_transfer={cfg.generation.weight_transfer}"
            + (f" 'generation.devices=\"{cfg.generation.devices}\"'" if cfg.generation.devices else ""),
            flush=True,
        )
        while server.is_running():
            time.sleep(0.5)
        raise ServerError(f"the vLLM server ended: {server.last_error()} ({arguments.log})")
    except ServerError as error:
        print(f"tinyzero serve: {error}", file=sys.stderr)
        return 7
    finally:
        server.stop()
        token_file.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyzero serve",
        usage="tinyzero serve +<task>=<recipe> | RECIPE.yaml [key=value ...] [--host H] [--port P] [--token_file F] [--log F]",
        description="Start vLLM's own server with what a recipe needs. Every route but /health asks for the token in a file "
        "that only you can read.",
        epilog="example:\n  tinyzero serve +countdown=grpo-tiny\n"
        "  tinyzero train +countdown=grpo-tiny generation.engine=server generation.server=http://127.0.0.1:8000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    add("--token_file", type=Path, metavar="F", help="is written anew (default: below ~/.cache/tinyzero-trl)")
    add("--log", type=Path, metavar="F", default=Path("outputs/server.log"), help="default: %(default)s")
    add(INSIST, action="store_true", help="listen on all interfaces, or a public address")
    return parser
