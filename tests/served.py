"""The real server in a thread, for tests which ask it over the network."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.app import build_app
from meg_editor.serving.keys import Keys
from meg_editor.serving.server import Limits, Server

ADMIN_KEY, API_KEY = "admin-of-tests", "api-of-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def serving(model: MeGModel, folder: Path, **limits: int) -> Iterator[tuple[str, Server]]:
    """Address of a server, and the server; `model` is saved to `folder` first."""
    if not folder.exists():
        model.save_pretrained(folder)
    server = Server(model, folder, Keys(ADMIN_KEY, API_KEY), Limits(**limits))
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(server), log_level="error", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        while not running.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        yield address, server
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()


def client(address: str, key: str | None = ADMIN_KEY) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=address, headers=headers, timeout=60)
