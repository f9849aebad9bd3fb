"""The page of throughput-bench's figures: whole by itself, and in a real browser on a phone and in the dark."""

import json
import re
import shutil
import subprocess

import pytest

from bench import command, rank_setup, scaling
from bench.config import BenchConfig
from bench.harness.datasets import stream
from bench.harness.model_step import ModelOptions
from bench.report import page
from shards.errors import InputError

CHROMIUM = shutil.which("chromium")

RATE = {"p10": 90.0, "p90": 110.0}
REPORT = {
    "command": "python cli.py throughput-bench --data " + "/a/very/long/folder" * 12,
    "machine": {"cpu": "A <processor> & more", "cores": 2, "memory_gib": 23.5, "torch": "2.13.0"},
    "data": {"name": "set"},
    "batch_size": 64,
    "width": 1.0,
    "limits": {"matmul": {"rate": 3e11, "unit": "FLOP", "what": "2048 x 2048 matrix products", "cpu": None}},
    "stages": [
        {"name": name, "img_per_s": 100.0, **RATE, "limit": limit, "limit_img_per_s": 150.0, "of_limit": 2 / 3}
        | {"cpu_use": 1.9, "gpu_use": None, "memory_peak_bytes": 2**30}
        for name, limit in (("forward+backward", "matmul"), ("train", "predicted"))
    ],
    "peers": [
        {"name": "ours (DALI)", "version": "1", "img_per_s": 1000.0, **RATE, "ratio": 1.0},
        {"name": "webdataset + Pillow", "version": "2", "img_per_s": 500.0, **RATE, "ratio": 2.0},
        {"name": "FFCV", "absent": "ffcv cannot be imported: " + "x" * 200},
    ],
    "scaling": [
        {
            "axis": "threads",
            "what": "the pipeline",
            "points": [{"x": n, "img_per_s": 99.0 * n, **RATE} for n in (1, 2)],
        },
        {"axis": "ranks", "what": "a step", "points": [{"x": 1, "img_per_s": 40.0, **RATE}]},
    ],
    "ratios": {"LRN tax": {"ratio": 0.25, "over": 1.0, "under": 4.0}},
    "bottleneck": "model",
    "verdict": "Training is bound by the model at 100 img/s.\nPredicted 99, measured 98.",
}
TEXTS = (
    "bound by the model at 100 img/s",
    "Predicted 99",
    "67% of 150",
    "webdataset + Pillow",
    "absent",
    "threads",
    "2.13.0",
)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows():
    html = page(REPORT)
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)
    assert "A &lt;processor&gt; &amp; more" in html and "<processor>" not in html
    assert 'name="viewport" content="width=device-width' in html  # or a phone lays it out 980 wide
    assert html.count("<svg") == 2 and html.count("<circle") == 3
    bare = page({**REPORT, "peers": [], "scaling": []})
    assert "<svg" not in bare and "Other loaders" not in bare


PROBE = """<!doctype html><html><body><iframe id="phone" width="360" height="5000" srcdoc="{page}"></iframe><script>
onload = () => setTimeout(() => {{
  const inside = document.getElementById("phone").contentDocument, root = inside.documentElement;
  const beyond = [...inside.querySelectorAll("*")].filter(one => one.getBoundingClientRect().right > 360.5);
  document.body.innerHTML = "<pre>" + JSON.stringify({{wide: root.scrollWidth, beyond: beyond.map(one => one.tagName),
    ground: getComputedStyle(inside.body).backgroundColor, text: getComputedStyle(inside.body).color,
    height: root.scrollHeight}}) + "</pre>"; }}, 300);
</script></body></html>"""


@pytest.mark.skipif(not CHROMIUM, reason="chromium is absent (Debian: apt install chromium): the page is not shown")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_a_phone_and_the_dark_is_dark(tmp_path, dark):
    html = page(REPORT)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.replace("&", "&amp;").replace('"', "&quot;")))
    shown = tmp_path / "page.html"
    shown.write_text(html)
    found = json.loads(re.search(r"<pre>(\{.*\})</pre>", browse(probe, tmp_path, dark))[1])
    assert found["wide"] <= 360 and found["beyond"] == []
    light, dim = (sum(map(int, re.findall(r"\d+", found[key])[:3])) for key in ("ground", "text"))
    assert (light < 150 < 600 < dim) if dark else (dim < 150 < 600 < light)
    dom = browse(shown, tmp_path, dark)
    assert all(text in dom for text in TEXTS)


def browse(path, tmp_path, dark):
    """The page as the browser has it after its scripts."""
    settings = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    # 0 is dark and 1 is light, in Blink's own words
    settings += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *settings, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_scaling_measures_every_axis(data, tmp_path, monkeypatch):
    used = []

    def noted(of, **options):
        used.append((options["threads"], options["prefetch"]))
        return stream(of, **options)

    monkeypatch.setattr(rank_setup, "stream", noted)
    chosen = {"threads": None, "prefetch": 3, "affinity": None, "decode_on": None, "hw_decoder_load": None}
    model = ModelOptions(width=0.05)
    config = BenchConfig(data, 4, model, device="cpu", decoding=chosen, seconds=0.1, with_scaling=True)
    axes = scaling.measure(config, data, tmp_path)
    assert {prefetch for _, prefetch in used} == {3} and used[0][0] == 1  # as chosen, but for what is changed
    assert [axis["axis"] for axis in axes] == ["threads", "ranks", "batch", "pictures"]
    points = {axis["axis"]: [point["x"] for point in axis["points"]] for axis in axes}
    assert points["threads"][0] == 1 and points["ranks"][0] == 1 and points["batch"] == [1, 2, 4]
    assert points["pictures"] == ["256", "384", "512", "originals"]
    assert all(point["img_per_s"] > 0 for axis in axes for point in axis["points"])
    assert scaling.table(axes).count("img/s by") == 4


def test_a_report_lands_where_it_was_asked_for(data, tmp_path, run_cli):
    out = tmp_path / "page.html"
    words = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.05, "--device", "cpu"]
    run_cli("throughput-bench", "--data", data, "--report", out, *words)
    assert "What bounds training" in out.read_text()
    done = run_cli("throughput-bench", "--report", tmp_path / "none" / "page.html", check=False)
    assert done.returncode and "--report" in done.stderr and "there is no such folder" in done.stderr


def test_torchrun_is_told_at_once_that_scaling_starts_ranks_itself(data, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(command, "launch", lambda *_, **__: pytest.fail("it has begun to measure"))
    with pytest.raises(InputError, match="leave torchrun out"):
        command.run(BenchConfig(data, with_scaling=True))


def test_powers():
    assert [scaling.powers(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]
