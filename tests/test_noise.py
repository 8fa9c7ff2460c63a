import numpy as np

from ditbench.noise import batch_noise, starting_noise


def test_noise_is_a_function_of_seed_and_caption_alone() -> None:
    shape = (3, 8, 8)
    together = batch_noise(0, ["a", "b", "c"], shape)
    assert np.array_equal(together[1], starting_noise(0, "b", shape))
    assert not np.array_equal(starting_noise(1, "b", shape), starting_noise(0, "b", shape))
    assert not np.array_equal(together[0], together[1])


def test_noise_is_standard_normal() -> None:
    noise = batch_noise(0, [str(i) for i in range(200)], (3, 16, 16))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
