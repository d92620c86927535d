"""How soon does each page show something, and how much of the network does it take?

    ./studio bench page [--loads 7] [--out FILE]

A studio of its own with one short finished run; Chromium without a cache opens every page a few times. Printed are
the median time until the first paint (goal: under 300 ms) and the bytes that came over the wire, packed (goal for the
run page: under 120 kB without what is loaded later), each also as a share of its goal. Exit status 1 beyond a goal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from tests.browser.pages import launch  # noqa: E402
from tests.integration.studio import RunningStudio  # noqa: E402

FIRST_PAINT_GOAL_MS = 300.0
RUN_PAGE_GOAL_BYTES = 120_000
MEASURE = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const sent = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  return { paint: paint?.startTime ?? null, bytes: sent.filter((e) => !e.name.includes("/api/"))
    .reduce((sum, e) => sum + e.encodedBodySize, 0), requests: sent.length };
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    os.environ.pop("STUDIO_DATA_DIR", None)
    with tempfile.TemporaryDirectory(prefix="page-") as directory:
        studio = RunningStudio(Path(directory))
        studio.start()
        try:
            rows = measure(studio, args.loads)
        finally:
            studio.close()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
    return report(rows)


def pages_of(studio: RunningStudio) -> dict[str, str]:
    """Name and address of every page, with a finished run to show."""
    run = studio.client.post("/runs", {"stage": "pretrain", "config": {
        "preset": "tiny-cpu", "max_steps": 300, "hidden_size": 32, "num_hidden_layers": 1, "max_seq_len": 32}})
    studio.client.wait(f"/runs/{run['id']}", lambda r: r["state"] == "completed", timeout_s=300)
    dataset = studio.client.post("/datasets", {"source": {"kind": "starter", "part": "text", "minutes": 1}})
    studio.client.wait_ready("datasets", dataset["id"], timeout_s=120)
    return {"first model": "/start", "runs": "/runs", "new run": "/runs/new", "run": f"/runs/{run['id']}",
            "pipelines": "/pipelines", "datasets": "/datasets", "dataset": f"/datasets/{dataset['id']}",
            "checkpoints": "/checkpoints", "chat": "/chat", "system": "/system", "api": "/api/docs", "login": "/login"}


def measure(studio: RunningStudio, loads: int) -> list[dict]:
    found = []
    addresses = pages_of(studio)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for name, path in addresses.items():
            seen = []
            for _ in range(loads + 1):  # the first one warms the server's templates, not the browser's cache
                with browser.new_context(base_url=studio.url) as context:
                    page = context.new_page()
                    if name != "login":
                        page.goto(f"/?token={studio.login_token}")
                        page.wait_for_url(lambda url: "token=" not in url)
                        page.context.new_cdp_session(page).send("Network.clearBrowserCache")
                    seen.append(load(page, path))
            found.append({"page": name, "paint_ms": statistics.median(s["paint"] for s in seen[1:]),
                          "bytes": seen[-1]["bytes"], "requests": seen[-1]["requests"]})
        browser.close()
    return found


def load(page: Page, path: str) -> dict:
    page.goto(path, wait_until="load")
    page.wait_for_timeout(400)  # what is fetched right after the load belongs to it
    return page.evaluate(MEASURE)


def report(rows: list[dict]) -> int:
    print(f"{'page':<12} {'first paint':>12} {'of goal':>8} {'on the wire':>12} {'requests':>9}")
    beyond = 0
    for row in rows:
        share = row["paint_ms"] / FIRST_PAINT_GOAL_MS
        print(f"{row['page']:<12} {row['paint_ms']:>9.0f} ms {share:>8.2f} {row['bytes'] / 1000:>9.1f} kB "
              f"{row['requests']:>9}")
        beyond += share > 1
    size = next(row["bytes"] for row in rows if row["page"] == "run")
    print(f"run page: {size / RUN_PAGE_GOAL_BYTES:.2f} of its goal of {RUN_PAGE_GOAL_BYTES // 1000} kB")
    return 1 if beyond or size > RUN_PAGE_GOAL_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
