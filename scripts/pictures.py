"""Draws docs/pictures from a real run: `fedmq watch` at its end, and `fedmq report` in a headless browser."""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageChops
from rich.console import Console

from federation.broker_address import BrokerAddress
from federation.settings import load_run_file
from fedmq.private_broker import AGGREGATOR, PrivateBroker
from fedmq.watch import Watcher

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GIVE_UP_SECONDS = 1800.0
POLL_SECONDS = 0.2
NUM_COLOURS = 128
"""Enough for plots and text, at a third of the bytes."""

MARGIN_PIXELS = 24


def main() -> int:
    """Run a demo, watch it, and draw both pictures; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/pictures", description=__doc__)
    parser.add_argument("--data", default=None, help="data set; default what `fedmq demo` chooses")
    parser.add_argument("--rounds", default="8")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.stderr.write("error: there is no Chromium or Chrome to draw with: install one\n")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedmq-pictures-") as scratch:
        folder = Path(scratch)
        demo = [sys.executable, "-m", "fedmq.cli", "demo", "--rounds", options.rounds, "--out", str(folder / "run")]
        if options.data:
            demo += ["--data", options.data]
        process = subprocess.Popen(demo, cwd=ROOT)
        try:
            screen = watch(folder / "run", process)
        finally:
            process.terminate() if process.poll() is None else None
            process.wait()
        (folder / "watch.html").write_text(f'<body style="margin:0">{screen}</body>', encoding="utf-8")
        draw(browser, folder / "watch.html", options.out / "watch.png", width=1180, height=1400)
        subprocess.run([sys.executable, "-m", "fedmq.cli", "report", str(folder / "run")], check=True, cwd=ROOT)
        draw(browser, folder / "run" / "report.html", options.out / "report.png", width=1200, height=8000)
    return 0


def watch(folder: Path, demo: subprocess.Popen[bytes]) -> str:
    """Follow the demo's run to its end; return the last screen as SVG."""
    address = find_broker(folder, demo)
    watcher = Watcher(address, load_run_file(folder / "run.toml").run)
    try:
        watcher.follow(GIVE_UP_SECONDS, ends_with_run=True)
    finally:
        watcher.close()
    if demo.wait() != 0:
        raise SystemExit("error: the demo failed; its text is above")
    console = Console(width=118, record=True, file=io.StringIO())
    console.print(watcher.state.render())
    return console.export_svg(title="fedmq watch")


def find_broker(folder: Path, demo: subprocess.Popen[bytes]) -> BrokerAddress:
    """Return the demo's private broker once it is there; in the run's folder, with the log-ins of its processes."""
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up_at and demo.poll() is None:
        for password in folder.glob(f"*/{AGGREGATOR}.password"):
            listener = re.search(r"^listener (\d+) ", (password.parent / "broker" / "mosquitto.conf").read_text(encoding="utf-8"), re.M)
            secret = password.read_text(encoding="utf-8")
            if listener and secret:
                return BrokerAddress(host=PrivateBroker.host, port=int(listener[1]), username=AGGREGATOR, password=secret)
        time.sleep(POLL_SECONDS)
    raise SystemExit("error: the demo did not start; its text is above")


def draw(browser: str, page: Path, picture: Path, *, width: int, height: int) -> None:
    """Take a picture of a page, cut to what is on it."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    flags += [f"--user-data-dir={page.parent / 'browser'}", f"--screenshot={picture}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=300)
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    blank = Image.new("RGB", image.size, image.getpixel((width - 1, height - 1)) or 0)

    box = ImageChops.difference(image, blank).getbbox()
    bottom = min(height, box[3] + MARGIN_PIXELS) if box else height
    image.crop((0, 0, width, bottom)).quantize(NUM_COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
