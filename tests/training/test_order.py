import numpy as np

from delift_pipeline.training.options import TrainingOptions, step_records


def test_every_epoch_shows_every_record_once() -> None:
    options = TrainingOptions(epochs=3, batch_size=4)
    shown = np.concatenate(list(step_records(options, 10, seed=1)))
    assert len(shown) == 30
    for epoch in range(3):
        assert sorted(shown[epoch * 10 : epoch * 10 + 10]) == list(range(10))


def test_steps_are_full_even_where_records_are_few() -> None:
    options = TrainingOptions(steps=5, batch_size=4, accumulation=2)
    sizes = [len(chosen) for chosen in step_records(options, 3, seed=0)]
    assert sizes == [8] * 5


def test_order_is_a_function_of_the_seed() -> None:
    options = TrainingOptions(steps=5, batch_size=4)

    def order(seed: int) -> list[int]:
        return np.concatenate(list(step_records(options, 10, seed))).tolist()

    assert order(0) == order(0) != order(1)
