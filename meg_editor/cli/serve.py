"""`meg-editor serve`: an edited model behind the OpenAI protocol."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import socket
import sys


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C, which let the answers under way end."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(
            f"serve needs {error.name}, which is not installed: pip install 'meg-editor[serve]'"
        ) from None
    from meg_editor.serving.keys import Keys, is_loopback

    api = options.api_key or os.environ.get("MEG_EDITOR_API_KEY") or None
    admin = options.admin_key or os.environ.get("MEG_EDITOR_ADMIN_KEY") or None
    if not all(key is None or (key.isascii() and key.isprintable()) for key in (api, admin)):
        raise ValueError("a key: expected printable ASCII characters")
    loopback = is_loopback(options.host)
    if not loopback and not (api and admin):
        raise ValueError(
            f"{options.host} can be reached from other machines: expected an API key and an admin "
            "key, by --api-key and --admin-key or MEG_EDITOR_API_KEY and MEG_EDITOR_ADMIN_KEY"
        )
    made = admin is None
    keys = Keys(admin or secrets.token_urlsafe(16), api)

    from meg_editor.model.meg_model import MeGModel
    from meg_editor.serving.app import build_app
    from meg_editor.serving.check import check_batching
    from meg_editor.serving.server import Limits, Server

    listening = _listening(options.host, options.port)
    model = MeGModel.from_pretrained(options.folder, base=options.base, device=options.device)
    if model.hparams.routing == "decoding":
        folder = shlex.quote(str(options.folder))
        raise ValueError(
            f"serve routes prompts, not what is written, and {folder} was edited with "
            f"routing=decoding: `meg-editor ask {folder}` answers so; or edit anew to serve: "
            f"`meg-editor edits {folder} --json > facts.jsonl`, then `meg-editor edit --edits "
            "facts.jsonl --out OTHER --set routing=prompt`"
        )
    check_batching(model)
    limits = Limits(
        answers=options.max_answers,
        body=options.max_body,
        per_minute=options.requests_per_minute,
    )
    server = Server(model, options.folder, keys, limits)
    hosts = ["localhost", "127.0.0.1", "[::1]", options.host] if loopback else None
    config = uvicorn.Config(
        build_app(server, hosts),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=options.grace,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = listening.getsockname()[1]
    print(f"{model!r}, named {server.name!r}", file=sys.stderr)
    print(f"http://{host}:{port}/" + (f"#admin={keys.admin}" if made else ""), flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:  # uvicorn ends the answers, then passes the signal on
        if stop.code != 128 + signal.SIGTERM:
            raise


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
