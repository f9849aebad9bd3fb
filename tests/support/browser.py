"""Pages as a real browser shows them: headless chromium, where it is installed."""

import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="chromium is absent (Debian: apt install chromium): the page is not shown"
)

# What may be wider than the page, for it scrolls by itself, is not looked into
PROBE = """<!doctype html><html><body><iframe id="phone" width="360" height="5000" srcdoc="{page}"></iframe><script>
onload = () => setTimeout(() => {{
  const inside = document.getElementById("phone").contentDocument, root = inside.documentElement;
  const scrolled = one => one.closest(".wide table"), right = one => one.getBoundingClientRect().right;
  const beyond = [...inside.querySelectorAll("*")].filter(one => !scrolled(one) && right(one) > 360.5);
  document.body.innerHTML = "<pre>" + JSON.stringify({{wide: root.scrollWidth, beyond: beyond.map(one => one.tagName),
    ground: getComputedStyle(inside.body).backgroundColor, text: getComputedStyle(inside.body).color,
    height: root.scrollHeight}}) + "</pre>"; }}, 300);
</script></body></html>"""


def assert_fits_a_phone(html, tmp_path, dark):
    """Nothing is wider than 360 pixels, and the colors are those of the scheme."""
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.replace("&", "&amp;").replace('"', "&quot;")))
    measured = json.loads(re.search(r"<pre>(\{.*\})</pre>", browse(probe, tmp_path, dark))[1])
    assert measured["wide"] <= 360 and measured["beyond"] == []
    light, dim = (sum(map(int, re.findall(r"\d+", measured[key])[:3])) for key in ("ground", "text"))
    assert (light < 150 < 600 < dim) if dark else (dim < 150 < 600 < light)


def browse(path, tmp_path, dark):
    """The page as the browser has it after its scripts."""
    settings = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    # 0 is dark and 1 is light, in Blink's settings
    settings += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *settings, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
