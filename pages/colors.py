"""The colors of pages and plots, as CSS variables, for a light and for a dark screen."""

SERIES = 6  # colors of lines that are told apart

VARIABLES = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c1c1e; --quiet: #5c5c66; --track: #e6e6ec; --bar: #2a6fdb;
  --ours: #16804a; --beyond: #b25a00; --line: #d4d4dc;
  --c0: #2a6fdb; --c1: #b25a00; --c2: #16804a; --c3: #a8328f; --c4: #0d7c8c; --c5: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ground: #131316; --text: #ececf1; --quiet: #a0a0ad; --track: #2c2c34; --bar: #6ea3f5; --ours: #4cc38a;
    --beyond: #f0a04b; --line: #3a3a44;
    --c0: #6ea3f5; --c1: #f0a04b; --c2: #4cc38a; --c3: #e58ad2; --c4: #54c7d6; --c5: #f2857d } }
"""
