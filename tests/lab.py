"""One JupyterLab and one page of Chromium for all browser tests: `def test_x(lab): lab.run([...]); lab.page...`

Whatever the page asks of another machine is refused and fails the test, and so does an error in its console.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
FLAGS += ("--disable-component-update", "--disable-default-apps")
FLAGS += ("--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")  # WebGL in software
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
HERE = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
HARMLESS = ("Could not restore the debugger state",)  # JupyterLab, of a kernel that was restarted
NOTEBOOK = {"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}}
SECONDS = 30  # that anything may take on a machine that is busy with something else

IDLE = """() => {
  const shown = window.jupyterapp?.shell?.currentWidget
  return shown?.content?.model?.cells && shown.sessionContext?.session?.kernel?.status === "idle"
}"""
SWAP = """async ([sources, restart]) => {
  const shown = jupyterapp.shell.currentWidget, notebook = shown.content.model.sharedModel
  notebook.transact(() => {
    notebook.deleteCellRange(0, notebook.cells.length)
    sources.forEach((source, i) => notebook.insertCell(i, { cell_type: "code", source, metadata: {}, outputs: [] }))
  })
  if (restart) await shown.sessionContext.session.kernel.restart()
}"""
RUN = """() => {
  window.__ran = null
  const done = said => { window.__ran = `${said ?? "ran"}` }
  jupyterapp.commands.execute("notebook:run-all-cells").then(() => done(), done)
}"""
OUTPUTS = """() => {
  const cells = Array.from(jupyterapp.shell.currentWidget.content.model.cells)
  return cells.map(cell => cell.outputs?.toJSON() ?? [])
}"""
ASK = """async code => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel
  const asked = kernel.requestExecute({ code, store_history: false })
  const said = { text: "", wrong: "" }
  asked.onIOPub = ({ content }) => {
    said.text += content.text ?? ""
    said.wrong += content.traceback?.join("\\n") ?? ""
  }
  await asked.done
  return said
}"""
PIXELS = """async png => {
  const drawn = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob())
  const canvas = new OffscreenCanvas(drawn.width, drawn.height).getContext("2d")
  canvas.drawImage(drawn, 0, 0)
  const bytes = canvas.getImageData(0, 0, drawn.width, drawn.height).data
  let text = ""
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768))
  return [drawn.width, btoa(text)]
}"""


class Lab:
    """Attributes:
    page: Playwright's; all of its methods may be used.
    abroad: the addresses on other machines that the page asked for.
    errors: what its console called an error.
    received: bytes that came from kernels over websockets.
    """

    def __init__(self, page: Any, address: str, token: str):
        self.page, self.address, self.token = page, address, token
        self.abroad: list[str] = []
        self.errors: list[str] = []
        self.received = 0
        page.set_default_timeout(1000 * SECONDS)
        page.context.route("**/*", self._let)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._listen)
        self._loop = asyncio.get_running_loop()

    def _let(self, route: Any) -> None:
        if route.request.url.startswith(HERE):
            route.continue_()
        else:
            self.abroad.append(route.request.url)
            route.abort()

    def _hear(self, said: Any) -> None:
        if said.type == "error" and not said.text.startswith(HARMLESS):
            self.errors.append(said.text)

    def _listen(self, socket: Any) -> None:
        if not socket.url.startswith(HERE):
            self.abroad.append(socket.url)
        socket.on("framereceived", self._count)

    def _count(self, frame: str | bytes) -> None:
        self.received += len(frame)

    def mark(self, running: bool) -> None:
        """Playwright leaves its event loop marked as running, which others in this process would stumble over."""
        asyncio._set_running_loop(self._loop if running else None)

    def open(self, name: str = "lab.ipynb") -> None:
        """The notebook, once its kernel is idle; again: the page is loaded anew, the kernel lives on."""
        self.page.goto(f"{self.address}/doc/tree/{name}?token={self.token}", wait_until="domcontentloaded")
        self.wait(IDLE)

    def run(self, cells: list[str], restart: bool = True) -> None:
        """Puts these cells in place of all others and runs them, in a fresh kernel unless told otherwise.

        Raises:
            AssertionError: with the traceback of a cell that failed.
        """
        self.swap(cells, restart)
        self.page.evaluate(RUN)
        self.wait("() => window.__ran")
        wrong = [out["traceback"] for cell in self.outputs() for out in cell if out["output_type"] == "error"]
        assert not wrong, "\n".join(wrong[0])

    def swap(self, cells: list[str], restart: bool = True) -> None:
        """Puts these cells in place of all others."""
        self.page.evaluate(SWAP, [cells, restart])
        self.wait(IDLE)

    def restart(self) -> None:
        """A fresh kernel; cells and what they showed stay."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.wait(IDLE)

    def wait(self, condition: str, arg: Any = None, seconds: float = SECONDS) -> Any:
        """What a JavaScript function returns as soon as that is something."""
        return self.page.wait_for_function(condition, arg=arg, timeout=1000 * seconds).json_value()

    def ask(self, code: str) -> str:
        """Runs code in the kernel, in no cell; what it printed.

        Raises:
            AssertionError: with the traceback if it failed.
        """
        said = self.page.evaluate(ASK, code)
        assert not said["wrong"], said["wrong"]
        return said["text"].strip()

    def until(self, code: str, expected: str, seconds: float = SECONDS) -> None:
        """Asks the kernel until it prints what is expected."""
        end, said = time.monotonic() + seconds, None
        while said != expected:
            assert time.monotonic() < end, f"{code} printed {said!r}, never {expected!r}"
            said = self.ask(code)

    def outputs(self) -> list[list[dict[str, Any]]]:
        """What each cell's outputs are saved as."""
        return self.page.evaluate(OUTPUTS)

    def dark(self, dark: bool = True) -> None:
        """Changes JupyterLab's theme, and waits until it is there."""
        theme = f"JupyterLab {'Dark' if dark else 'Light'}"
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        self.wait("light => document.body.dataset.jpThemeLight === light", "false" if dark else "true")

    def pixels(self, locator: Any) -> np.ndarray:
        """What an element looks like: [height, width, 3] bytes."""
        return self.decoded(locator.screenshot())

    def decoded(self, png: bytes) -> np.ndarray:
        """A picture as [height, width, 3] bytes."""
        width, pixels = self.page.evaluate(PIXELS, b64encode(png).decode())
        return np.frombuffer(b64decode(pixels), np.uint8).reshape(-1, width, 4)[..., :3]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """A JupyterLab that keeps all it writes in a folder: its address and its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, work = os.urandom(16).hex(), folder / "work"
    quiet = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    for made in (work, quiet.parent):
        made.mkdir(parents=True)
    quiet.write_text(json.dumps(QUIET))
    (work / "lab.ipynb").write_text(json.dumps(NOTEBOOK | {"nbformat": 4, "nbformat_minor": 5}))
    homes = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    homes |= {"IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    root = str(Path(__file__).parents[1])
    env = os.environ | {name: str(folder / part) for name, part in homes.items()}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    asked = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0}
    asked |= {"ServerApp.root_dir": work, "IdentityProvider.token": token}
    asked |= {"LabApp.expose_app_in_browser": True, "LabApp.news_url": ""}
    asked |= {"LabApp.extension_manager": "readonly", "ServerApp.disable_check_xsrf": True}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in asked.items()]
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=work, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        end = time.monotonic() + SECONDS
        while not answers(f"{address}/api?token={token}"):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield address, token
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@contextmanager
def opened() -> Iterator[Lab]:
    """A lab, for a script; a test takes the fixture.

    Raises:
        FileNotFoundError: without Chromium.
    """
    from playwright.sync_api import sync_playwright

    found = chromium()
    if found is None:
        raise FileNotFoundError(f"No browser: install one of {', '.join(CHROMIUM)}.")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as (address, token),
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            lab = Lab(browser.new_page(viewport={"width": 1280, "height": 1400}), address, token)
            lab.open()
            yield lab
        finally:
            browser.close()


def chromium() -> str | None:
    """The system's browser."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@pytest.fixture(scope="session")
def jupyter() -> Iterator[Lab]:
    if chromium() is None:
        pytest.skip("no Chromium")
    with opened() as lab:
        yield lab
        lab.mark(running=True)


@pytest.fixture
def lab(jupyter: Lab) -> Iterator[Lab]:
    """The lab in its light theme; after the test it must have been quiet, and have asked nothing of other machines."""
    jupyter.mark(running=True)
    jupyter.dark(False)
    for found in (jupyter.abroad, jupyter.errors):
        found.clear()
    yield jupyter
    jupyter.page.mouse.move(0, 0)
    jupyter.mark(running=False)
    assert jupyter.abroad == []
    assert jupyter.errors == []


@cache
def uses_lab(file: Path) -> bool:
    """Whether a file's tests take the lab: xdist gives all of those to one worker."""
    takes = re.compile(r"^def test_\w+\([^)]*\blab\b", re.MULTILINE)
    return file.suffix == ".py" and takes.search(file.read_text(encoding="utf-8")) is not None
