"""What two devices exchange: computed from the model, counted by the kernel in real steps, and drawn."""

import json
import socket
import threading

import pytest
import torch

from bench.harness.traffic import bytes_received, counting_saved, held_bytes
from paper import communication as study
from paper.job import Job
from shards.errors import InputError

WIDTH, BATCH = 0.1, 4


@pytest.fixture(scope="module")
def turns():
    """One step of each, but of the layout that exchanges gradients alone, which the study itself measures."""
    made = {layout: study.one_turn(layout, BATCH, 0, WIDTH, steps=1) for layout in ("one device", "towers", "hybrid")}
    summed = study.computed("data", BATCH, WIDTH)
    made["data"] = {**made["one device"], "layout": "data", "computed": summed, "received": float(summed["gloo"])}
    return made


@pytest.mark.parametrize("layout", ["one device", "towers", "hybrid"])
def test_what_the_kernel_counts_is_what_the_model_lets_compute(turns, layout):
    turn = turns[layout]
    least, gloo = turn["computed"]["least"], turn["computed"]["gloo"]
    assert gloo <= turn["received"] <= 1.05 * gloo + 12_000  # headers of messages
    assert least == turn["activations"] + turn["gradients"]


def test_a_device_holds_its_part(turns):
    held = {layout: turn["held"] for layout, turn in turns.items()}
    assert held["towers"] == held["one device"] / 2
    assert held["towers"] < held["hybrid"] < held["one device"]
    assert turns["towers"]["saved"] < 0.8 * turns["one device"]["saved"]


def test_the_papers_size():
    assert study.computed("towers", 1, 1.0)["least"] == 242_700
    assert study.computed("data", 128, 1.0)["least"] == 4 * 60_965_224


def test_the_answer_in_words(turns):
    about = study.answer(list(turns.values()))
    json.dumps(about)
    assert len(study.text(about)) == 2 * len(study.SETTINGS)
    assert set(study.pictures(list(turns.values()))) == {"communication", "communication-memory"}


def test_a_gpu_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match="--device cpu"):
        study.trials(Job(None, tmp_path, 1, torch.device("cuda"), False))


def test_received_bytes_are_counted():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()) as sending, listening.accept()[0] as receiving:
            before = bytes_received()
            thread = threading.Thread(target=sending.sendall, args=(bytes(123_456),))
            thread.start()
            left = 123_456
            while left:
                left -= len(receiving.recv(65536))
            thread.join()
            assert bytes_received() - before == 123_456


def test_kept_tensors_count_once():
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(5, 10)
    with counting_saved([weight]) as saved:
        y = x @ weight
        (y * y).sum().backward()
    assert saved() == x.nbytes + y.nbytes
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    optimizer.step()
    assert held_bytes([weight], optimizer) == 3 * weight.nbytes
