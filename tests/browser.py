"""A headless Chromium, driven over its own debugging protocol: no driver, no further package."""

import base64, json, os, shutil, subprocess, tempfile, time, urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    "Where Chromium is: `SAE_NOTEBOOKS_BROWSER`, or the first of the usual names on PATH."
    return os.environ.get("SAE_NOTEBOOKS_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )


class Browser:
    "One browser with one page; closes with its `with` block."

    def __init__(self, wait: float = 30.0):
        self.folder, self.wait, self.count = tempfile.mkdtemp(), wait, 0
        self.events, self.answers = [], {}

    def __enter__(self):
        import websocket

        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        options = ["--headless=new", "--disable-gpu", "--remote-debugging-port=0", "--mute-audio"]
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        own = [f"--user-data-dir={self.folder}", "--allow-file-access-from-files"]
        self.process = subprocess.Popen(
            [find_browser(), *options, *quiet, *own, *sandbox, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port, deadline = Path(self.folder) / "DevToolsActivePort", time.time() + self.wait
        while not (port.exists() and port.read_text().strip()):
            if time.time() > deadline or self.process.poll() is not None:
                self.__exit__()
                raise RuntimeError("the browser did not start")
            time.sleep(0.05)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=self.wait, suppress_origin=True
        )
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _receive(self):
        message = json.loads(self.socket.recv())
        if "id" in message:
            self.answers[message["id"]] = message
        else:
            self.events.append(message)

    def call(self, method: str, **given):
        self.count += 1
        own = self.count
        self.socket.send(json.dumps(dict(id=own, method=method, params=given)))
        while own not in self.answers:
            self._receive()
        answer = self.answers.pop(own)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def run(self, script: str):
        "The value of a JavaScript expression, awaited; raises `RuntimeError` where it throws."
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def open(self, address: str, width: int = 1400, height: int = 900, dark: bool = False):
        "Open a page and wait until it has loaded."
        self.events = []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self._receive()

    def errors(self) -> list[str]:
        "What went to the console as an error since the page was opened, and uncaught exceptions."
        self.run("1")
        found = []
        for e in self.events:
            p = e["params"]
            if e["method"] == "Runtime.exceptionThrown":
                d = p["exceptionDetails"]
                found.append(d.get("exception", {}).get("description", d["text"]))
            elif e["method"] == "Runtime.consoleAPICalled" and p["type"] == "error":
                found.append(str([a.get("value") for a in p["args"]]))
            elif e["method"] == "Log.entryAdded" and p["entry"]["level"] == "error":
                found.append(p["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        "Addresses that were asked for since the page was opened."
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def picture(self, path, whole: bool = False):
        "A screenshot, of the window or of the whole page."
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
