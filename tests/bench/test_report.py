"""The page of throughput-bench's figures needs nothing else, and fits a phone and the dark in a real browser."""

import re

import pytest

from bench.report import meaning_of, page
from tests.support.browser import assert_fits_a_phone, browse, needs_chromium

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
        for name, limit in (("forward+backward", "matmul"), ("model beside", "model"), ("train", "predicted"))
    ]
    + [
        {"name": "eval", "img_per_s": 400.0, **RATE, "limit": "matmul", "limit_img_per_s": 100.0, "of_limit": 4.0}
        | {"cpu_use": 1.9, "gpu_use": None, "memory_peak_bytes": 2**30, "others_cpus": 1.2, "doubtful": True}
    ],
    "load": {"cores": 2, "stages": 1.2, "peers": None, "scaling": None, "average": [3.5, 4.25]},
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
    "Not measured: FFCV",
    "threads",
    "2.13.0",
)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows():
    html = page(REPORT)
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)
    assert "A &lt;processor&gt; &amp; more" in html and "<processor>" not in html
    assert 'name="viewport" content="width=device-width' in html  # or a phone lays it out 980 wide
    assert "img/s: model alone" in html and "img/s: the prediction from its parts" in html
    assert html.count("<svg") == 2 and html.count("<circle") == 3
    bare = page({**REPORT, "peers": [], "scaling": []})
    assert "<svg" not in bare and "Other loaders" not in bare


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_a_phone_and_the_dark_is_dark(tmp_path, dark):
    html = page(REPORT)
    assert_fits_a_phone(html, tmp_path, dark)
    shown = tmp_path / "page.html"
    shown.write_text(html)
    dom = browse(shown, tmp_path, dark)
    assert all(text in dom for text in TEXTS)


def test_a_bar_beyond_its_limit_marks_where_that_lies():
    bars = {
        name: body
        for name, body in re.findall(r'<div class="row"><div><span>(.*?)</span>(.*?)</div></div>', page(REPORT))
    }
    assert (
        'class="bar beyond" style="width:100.0%"' in bars["eval"] and 'class="limit" style="left:25.0%"' in bars["eval"]
    )
    assert 'class="limit"' not in bars["train"] and "width:66.7%" in bars["train"]


def test_what_cannot_be_trusted_is_said_on_top_and_marked():
    html = page(REPORT)
    assert html.index("BUSY MACHINE: other programs used 1.2 of 2 cores") < html.index("bound by the model at")
    assert "load average 3.5 at the beginning, 4.25 at the end" in html and html.count("400 img/s ?") == 1
    quiet = [{**stage, "doubtful": False} for stage in REPORT["stages"]]
    assert "BUSY" not in page({**REPORT, "stages": quiet}) and " ?" not in page({**REPORT, "stages": quiet})


def test_axes_have_titles_ratios_a_meaning_and_absent_loaders_one_line(short_report):
    html = page(REPORT)
    assert ">threads of the data path</text>" in html and html.count(">images a second</text>") == 2
    assert "1 if that cost nothing" in html and all(meaning_of(name) for name in short_report["ratios"])
    assert "<span>FFCV</span>" not in html and "Not measured: FFCV (ffcv cannot be imported" in html
