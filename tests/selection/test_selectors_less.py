"""LESS: gradients of single records, their projection, Adam's moments, shards and the ranking."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.ranking import WARM_UP, draw_share, target_set
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.selectors.less import LessOptions, mean_cosines
from delift_pipeline.training.batches import Example, answer_losses, collate, encode_examples
from delift_pipeline.training.gradients import (
    Moments,
    RecordGradients,
    gradient_batches,
    project,
    signs,
)
from delift_pipeline.training.influence import LowRankGradients, warm_up_options

SMALL = {
    "warmup_share": 0.4,
    "target_share": 0.25,
    "epochs": 2,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "learning_rate": 5e-3,
    "dims": 2048,
}


def adapted(
    options: ModelOptions, records: pl.DataFrame, rank: int = 4
) -> tuple[torch.nn.Module, list[Example]]:
    """The tiny model under adapters that are not zero, in evaluation mode, and its examples."""
    from peft import LoraConfig, get_peft_model

    from delift_pipeline.scoring.model import load_model

    loaded = load_model(options)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return model, encode_examples(loaded.encoder, records)[0]


def one_by_one(model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    """The oracle: a backward pass a record, gradients read off the weights."""
    rows = []
    for example in examples:
        model.zero_grad(set_to_none=True)
        answer_losses(model, collate([example])).mean().backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows)


def of_all(model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    gradients = RecordGradients(model)
    return gradients(collate(examples))


def test_gradients_of_a_batch_equal_a_loop_of_backward_passes(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    model, examples = adapted(tiny, records)
    expected = one_by_one(model, examples)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(of_all(model, examples), expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_the_loop_for_learned_positions_and_transposed_weights() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    )
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    rng = np.random.default_rng(0)
    examples = [
        Example(
            str(n),
            rng.integers(0, 50, 3 + n % 4).astype(np.int32),
            rng.integers(0, 50, 2 + n % 3).astype(np.int32),
        )
        for n in range(7)
    ]
    torch.testing.assert_close(
        of_all(model, examples), one_by_one(model, examples), atol=1e-5, rtol=1e-5
    )


def test_gradients_refuse_weights_that_are_not_of_linear_layers(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    model, _ = adapted(tiny, records)
    model.get_submodule("base_model.model.model.norm").requires_grad_(True)
    with pytest.raises(DeliftError, match=r"linear layers.*norm"):
        RecordGradients(model)


def test_gradient_batches_hold_every_record_once_within_the_limits() -> None:
    examples = [
        Example(str(n), np.zeros(n % 9 + 1, np.int32), np.zeros(2, np.int32)) for n in range(40)
    ]
    batches = list(gradient_batches(examples, size=10, tokens=30, memory=4 * 10 * 5))
    assert sorted(place for batch in batches for place in batch) == list(range(40))
    assert max(len(batch) for batch in batches) == 5
    assert all(len(b) * max(len(examples[place]) for place in b) <= 30 for b in batches)


@pytest.mark.slow
def test_gradients_of_a_batch_cost_less_than_a_fifth_of_the_loop(records: pl.DataFrame) -> None:
    # Records as short as the demo's: long ones keep a single core busy one at a time as well.
    model, examples = adapted(ModelOptions(model="demo", device="cpu"), records)
    examples = [examples[n % len(examples)] for n in range(64)]
    of_all(model, examples[:4])
    one_by_one(model, examples[:2])
    started = time.process_time()
    one_by_one(model, examples)
    middle = time.process_time()
    of_all(model, examples)
    loop, batch = middle - started, time.process_time() - middle
    assert loop > 5 * batch


def test_signs_are_bits_of_splitmix64_whatever_part_is_made() -> None:
    def mixed(x: int) -> int:
        mask = (1 << 64) - 1
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    seed, dims = 7, 128
    words = [[mixed((row * 2 + word) ^ mixed(seed)) for word in range(2)] for row in range(20)]
    expected = [[(w >> bit & 1) * 2 - 1 for w in row for bit in range(64)] for row in words]
    found = signs(0, 20, dims, seed, torch.device("cpu"))
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    np.testing.assert_array_equal(signs(13, 7, dims, seed, torch.device("cpu")), found[13:])


def test_projection_is_the_product_with_the_signs() -> None:
    vectors = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    matrix = signs(0, 5000, 256, 3, torch.device("cpu"))
    expected = vectors @ matrix / 16
    torch.testing.assert_close(project(vectors, 256, 3), expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(project(vectors, 256, 4), expected, atol=1)


def test_projection_keeps_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(1, 20000, generator=generator)
    vectors = torch.randn(8, 20000, generator=generator) + shared
    unit = torch.nn.functional.normalize(vectors, dim=1)
    kept = torch.nn.functional.normalize(project(vectors, 8192, 0), dim=1)
    # Five standard deviations of 1 / sqrt(dims).
    assert (unit @ unit.T - kept @ kept.T).abs().max() < 5 / 8192**0.5


def test_projection_refuses_dims_it_cannot_make() -> None:
    with pytest.raises(InputError, match="multiple of 64"):
        project(torch.ones(1, 3), 100, 0)


def test_adams_update_is_the_step_that_torch_takes() -> None:
    weight = torch.nn.Parameter(torch.randn(6))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        weight.grad = torch.randn(6)
        optimizer.step()
    state = optimizer.state[weight]
    moments = Moments(state["exp_avg"].clone(), state["exp_avg_sq"].clone(), int(state["step"]))
    gradient, before = torch.randn(6), weight.detach().clone()
    expected = moments.update(gradient[None])[0]
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close((before - weight.detach()) / 0.01, expected, atol=1e-3, rtol=1e-3)


def test_mean_cosines_leave_a_records_own_out() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(5, 8)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    features = np.concatenate([targets[[3, 1]], rng.normal(size=(1, 8)).astype(np.float32)])
    groups = [np.array([0, 1, 3]), np.array([2, 4]), np.array([1])]
    itself = np.array([3, 1, -1])
    found = mean_cosines(features, targets, groups, itself)
    for row in range(3):
        for number, members in enumerate(groups):
            others = [m for m in members if m != itself[row]]
            expected = np.mean([features[row] @ targets[m] for m in others]) if others else -1
            assert found[row, number] == pytest.approx(expected, abs=1e-6)


def inputs(options: ModelOptions, home: Home, pool: pl.DataFrame) -> SelectionInputs:
    model = LanguageModel(options, home)
    return SelectionInputs("instruction_tuning", pool, model=model, gradients=LowRankGradients())


def test_ranking_is_that_of_a_slow_oracle(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    given = inputs(tiny, home, records)
    found = select(given, "less", "full", 0, SMALL)
    scores = oracle(given, LessOptions.model_validate(SMALL))
    expected = np.array([scores[record] for record in found.ranking])
    assert found.gains is not None
    # float16 of unit vectors is good to about 1e-4 in a cosine.
    np.testing.assert_allclose(found.gains, expected, atol=3e-4)
    assert np.ptp(expected) > 0.05


def test_targets_take_turns_by_their_own_influences(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    given = inputs(tiny, home, records)
    found = select(given, "less", "full", 0, SMALL | {"queries": "round_robin"})
    options = LessOptions.model_validate(SMALL)
    by_hand = influences_by_hand(given, options)
    targets = target_set(given, 0, options.target_share).ids
    assert found.gains is None and sorted(found.ranking) == sorted(by_hand)
    assert len(targets) == 3
    for place, record in enumerate(found.ranking):
        target = targets[place % len(targets)]
        left = {other: by_hand[other].get(target, -1.0) for other in found.ranking[place:]}
        # float16 of unit vectors is good to about 1e-4 in a cosine.
        assert left[record] == pytest.approx(max(left.values()), abs=6e-4)
    assert found.ranking != select(given, "less", "full", 0, SMALL).ranking
    with pytest.raises(InputError, match="no gains"):
        select(given, "less", "auto", 0, SMALL | {"queries": "round_robin"})


def test_tasks_take_turns_and_within_each_its_targets(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    pool, names = records.head(8), ["a", "b", "b", "b"]
    target = records.tail(4).sort("record_id").with_columns(task=pl.Series(names))

    def ranking(targets: pl.DataFrame) -> tuple[str, ...]:
        given = replace(inputs(tiny, home, pool), stage="task_specific", target=targets)
        return select(given, "less", "full", 0, SMALL | {"queries": "round_robin"}).ranking

    alone = [ranking(target[[number]]) for number in range(4)]
    order: list[str] = []
    for turn in (0, 1, 0, 2, 0, 3, 0, 1):
        order.append(next(record for record in alone[turn] if record not in order))
    assert ranking(target) == tuple(order)
    assert len(set(alone)) > 1


def oracle(given: SelectionInputs, options: LessOptions) -> dict[str, float]:
    """Mean influence on the targets other than the record itself."""
    return {
        record: float(np.mean(list(by_target.values())))
        for record, by_target in influences_by_hand(given, options).items()
    }


def influences_by_hand(given: SelectionInputs, options: LessOptions) -> dict[str, dict[str, float]]:
    """Record -> target -> influence, without that on itself.

    From single backward passes, written-out Adam and the signs as a matrix.
    """
    model = given.language_model
    (folder,) = model.gradients.iterdir()
    steps = json.loads((folder / "checkpoints.json").read_text())
    pool = given.pool.sort("record_id")
    ids = pool["record_id"].to_list()
    targets = target_set(given, 0, options.target_share).ids
    total = {record: {t: 0.0 for t in targets if t != record} for record in ids}
    for entry in steps:
        rows = checkpoint_gradients(model, folder / f"step-{entry['step']:08d}", options, pool)
        weight = entry["learning_rate"] / sum(e["learning_rate"] for e in steps)
        for j, record in enumerate(ids):
            for t in total[record]:
                pair = rows[1][j], rows[0][ids.index(t)]
                cosine = torch.nn.functional.cosine_similarity(*pair, 0)
                total[record][t] += weight * float(cosine)
    return total


def checkpoint_gradients(
    model: LanguageModel, folder: Path, options: LessOptions, pool: pl.DataFrame
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected plain gradients and projected steps of Adam, [records, dims] each."""
    from delift_pipeline.training.setup import load_trainable

    prepared = load_trainable(warm_up_options(options, 5), model.options, None)
    stored = load_file(folder / "weights.safetensors")
    moments = load_file(folder / "moments.safetensors")
    named = [(n, p) for n, p in prepared.model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, value in named:
            value.copy_(stored[name])
    examples = encode_examples(prepared.encoder, pool)[0]
    plain = one_by_one(prepared.model.eval(), examples)
    mean = torch.cat([moments[f"{name}/exp_avg"].flatten() for name, _ in named])
    square = torch.cat([moments[f"{name}/exp_avg_sq"].flatten() for name, _ in named])
    count = float(moments[f"{named[0][0]}/step"]) + 1
    mean = (0.9 * mean + 0.1 * plain) / (1 - 0.9**count)
    square = (0.999 * square + 0.001 * plain**2) / (1 - 0.999**count)
    adam = mean / (square.sqrt() + 1e-8)
    matrix = signs(0, plain.shape[1], options.dims, 0, torch.device("cpu"))
    return plain @ matrix, adam @ matrix


def test_moments_of_the_checkpoint_decide_the_ranking(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    given = inputs(tiny, home, records)
    before = select(given, "less", "full", 0, SMALL)
    (folder,) = given.language_model.gradients.iterdir()
    for path in folder.glob("step-*/moments.safetensors"):
        stored = load_file(path)
        generator = torch.Generator().manual_seed(1)
        changed = {
            name: value * torch.rand(value.shape, generator=generator).square() * 100
            if name.endswith("exp_avg_sq")
            else value
            for name, value in stored.items()
        }
        save_file(changed, path)
    after = select(given, "less", "full", 0, SMALL)
    assert after.ranking != before.ranking
    assert sorted(after.ranking) == sorted(before.ranking)


def test_everything_is_found_the_second_time_and_what_is_missing_is_made_again(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    given = inputs(tiny, home, records)
    first = select(given, "less", 6, 0, SMALL)
    (folder,) = given.language_model.gradients.iterdir()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    second = select(inputs(tiny, home, records), "less", 6, 0, SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == made
    lost = sorted(folder.glob("features-*/adam/*.npy"))[0]
    lost.unlink()
    third = select(inputs(tiny, home, records), "less", 6, 0, SMALL)
    assert lost.is_file()
    assert first.ranking == second.ranking == third.ranking
    assert first.gains is not None and third.gains is not None
    assert first.gains.tobytes() == third.gains.tobytes()


def test_a_device_is_claimed_before_weights_are_loaded_and_for_nothing_else(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    claims: list[str] = []

    def choose(selector: str, **options: object) -> int:
        claims.clear()
        model = LanguageModel(tiny, home, claim=lambda: claims.append(selector))
        given = replace(inputs(tiny, home, records), model=model)
        select(given, selector, 6, 0, options)
        return len(claims)

    assert choose("less", **SMALL) == 1
    assert choose("less", **SMALL) == 0, "everything was found"
    assert choose("ifd") == choose("rds_plus") == 1
    assert choose("nuggets") == 1
    assert choose("nuggets") == 0, "every pair was found"
    assert choose("length") == 0, "a tokenizer is no weights"


def test_a_killed_warm_up_goes_on_from_its_last_checkpoint(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    given = inputs(tiny, home, records)
    whole = select(given, "less", "full", 0, SMALL)
    (folder,) = given.language_model.gradients.iterdir()
    # What a kill between the first and the second epoch leaves.
    (folder / "checkpoints.json").unlink()
    first, last = sorted(folder.glob("step-*"))
    before = (first / "weights.safetensors").stat().st_mtime_ns
    weights = (last / "weights.safetensors").read_bytes()
    shutil.rmtree(last)
    again = select(inputs(tiny, home, records), "less", "full", 0, SMALL)
    assert (first / "weights.safetensors").stat().st_mtime_ns == before
    assert (last / "weights.safetensors").read_bytes() == weights
    assert again.ranking == whole.ranking


def test_warm_up_and_targets_are_different_draws(records: pl.DataFrame) -> None:
    given = SelectionInputs("instruction_tuning", records)
    targets = set(target_set(given, 0, 0.25).ids)
    warm = set(draw_share(records, 0.25, [0, WARM_UP])["record_id"])
    assert len(targets) == len(warm) == 3
    assert targets != warm


def test_seed_and_order_of_the_file_matter_as_they_should(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    first = select(inputs(tiny, home, records), "less", "full", 0, SMALL).ranking
    assert select(inputs(tiny, home, records.reverse()), "less", "full", 0, SMALL).ranking == first
    assert select(inputs(tiny, home, records), "less", "full", 1, SMALL).ranking != first
