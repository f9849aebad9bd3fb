"""How pages and plots look: HTML and SVG that need nothing else. Knows no figures; whoever has some builds on it."""
