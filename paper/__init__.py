"""The paper's claims, tried: each with a command, a figure and an answer from our own runs."""
