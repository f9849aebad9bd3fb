"""The learning rate falls at the paper's drops or on plateaus, and warms up to a large batch's."""

import pytest

from trainer.schedule import count_plateaus, large_batch_lr, learning_rate


def test_the_lr_is_divided_by_ten_at_each_drop():
    lrs = [learning_rate(0.01, epoch, (25, 51, 79)) for epoch in (0, 24, 25, 50, 51, 78, 79, 89)]
    assert lrs == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate(0.01, 89, ()) == 0.01


def test_the_lr_falls_on_plateaus_three_times_at_most():
    errors = [0.9, 0.8, 0.85, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert [count_plateaus(errors[:seen], 2) for seen in range(13)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert learning_rate(0.01, 0, "plateau", errors[:7], 2) == pytest.approx(1e-4)
    assert count_plateaus(errors, 20) == 0 and count_plateaus([], 1) == 0


def test_a_large_batchs_lr_is_in_proportion_after_warming_up():
    lrs = [large_batch_lr(0.01, 1024, epoch) for epoch in (0, 2.5, 5, 50)]
    assert lrs == pytest.approx([0.01, 0.045, 0.08, 0.08])
    assert large_batch_lr(0.01, 128, 1) == pytest.approx(0.01)
