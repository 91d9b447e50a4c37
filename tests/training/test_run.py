import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.plots import loss_curve_png
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import answer_losses, collate, encode_examples
from delift_pipeline.training.log import TrainingLog, read_training_log, weights_hash
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import TrainingRun, train
from delift_pipeline.training.setup import load_trainable


def run(
    options: TrainingOptions,
    tiny: ModelOptions,
    records: pl.DataFrame,
    out: Path,
    seed: int = 0,
    **more: Any,
) -> TrainingLog:
    out.mkdir()
    return train(options, tiny, records, seed, out, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training.json"
    }


def test_same_seed_gives_the_same_bytes_and_another_gives_others(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    first = run(quick, tiny, records, tmp_path / "a")
    torch.manual_seed(99)
    again = run(quick, tiny, records.reverse(), tmp_path / "b")
    other = run(quick, tiny, records, tmp_path / "c", seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert set(files(tmp_path / "a")) == {"adapter_model.safetensors", "adapter_config.json"}
    assert first.losses == again.losses != other.losses
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "c")


def test_training_leaves_the_callers_random_state_alone(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(quick, tiny, records, tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


def test_the_log_accounts_for_the_run(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    log = run(quick, tiny, records, tmp_path / "a", on_step=lambda s, m: seen.append((s, m)))
    assert [step for step, _ in seen] == list(range(6))
    assert [m["loss"] for _, m in seen] == log.losses
    assert [m["learning_rate"] for _, m in seen] == log.learning_rates
    assert (log.steps, log.records_used, log.epochs) == (6, 12, 30 / 12)
    assert 0 < log.answer_tokens < log.tokens
    assert log.parameters > log.trainable_parameters > 0
    assert read_training_log(tmp_path / "a") == log


def test_first_loss_is_that_of_the_untrained_model(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    options = quick.model_copy(update={"batch_size": 12})
    log = run(options, tiny, records, tmp_path / "a")
    loaded = load_model(tiny)
    examples, _ = encode_examples(loaded.encoder, records)
    with torch.no_grad():
        expected = answer_losses(loaded.model, collate(examples)).mean()
    assert log.losses[0] == pytest.approx(float(expected), abs=1e-5)


def test_accumulation_is_one_large_batch(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    whole = run(quick.model_copy(update={"batch_size": 12}), tiny, records, tmp_path / "a")
    parts = {"batch_size": 3, "accumulation": 4}
    split = run(quick.model_copy(update=parts), tiny, records, tmp_path / "b")
    assert split.losses == pytest.approx(whole.losses, abs=1e-4)


def test_adapter_loads_with_peft_and_gives_the_logits_of_training(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    trainable = load_trainable(quick, tiny, None)
    examples, _ = encode_examples(trainable.encoder, records)
    from delift_pipeline.core.progress import SilentProgress

    TrainingRun(quick, 0, trainable, examples).run_steps(SilentProgress(), None)
    trainable.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        ours = cast(Any, trainable.model).eval()(input_ids=ids).logits
        theirs = reloaded(input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_nothing_written_names_a_path_of_this_machine(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    run(quick, tiny, records, tmp_path / "lora")
    full = TrainingOptions(method="full", steps=2, learning_rate=1e-3)
    run(full, tiny, records, tmp_path / "full")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
            assert str(Path(tiny.model).parent).encode() not in path.read_bytes(), path.name


def test_full_training_writes_a_whole_model(
    tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    options = TrainingOptions(method="full", steps=10, batch_size=12, learning_rate=3e-3)
    log = run(options, tiny, records, tmp_path / "a")
    assert log.trainable_parameters == log.parameters
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    examples, _ = encode_examples(load_model(tiny).encoder, records)
    with torch.no_grad():
        after = float(answer_losses(model, collate(examples)).mean())
    assert after < log.losses[0]
    trained = ModelOptions(model=str(tmp_path / "a"), device="cpu")
    assert load_model(trained).encoder.eos == load_model(tiny).encoder.eos


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_small_set_is_learned_by_heart(
    method: str, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    rate = 2e-2 if method == "lora" else 1e-2
    options = TrainingOptions.model_validate(
        {"method": method, "steps": 200, "batch_size": 12, "learning_rate": rate}
    )
    log = run(options, tiny, records, tmp_path / "a")
    assert log.loss_fell
    assert log.last_loss < 0.2 < log.first_loss
    asked = EvaluationOptions(metrics=("answer_loss", "exact_match"))
    found = evaluate(tiny, tmp_path / "a", records, asked)
    before = evaluate(tiny, None, records, asked)
    assert found.metrics["exact_match"] == 1.0
    assert found.metrics["answer_loss"] < 0.2 < before.metrics["answer_loss"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_goes_on_from_what_was_trained_before(
    method: str, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    options = TrainingOptions.model_validate(
        {"method": method, "steps": 60, "batch_size": 12, "learning_rate": 1e-2}
    )
    first = run(options, tiny, records, tmp_path / "a")
    second = run(options, tiny, records, tmp_path / "b", start=tmp_path / "a")
    assert second.started_from == "a"
    assert second.losses[0] < first.losses[0] / 2


def test_a_start_that_does_not_fit_is_refused(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    run(quick, tiny, records, tmp_path / "a")
    full = TrainingOptions(method="full", steps=2)
    with pytest.raises(InputError, match="an adapter"):
        run(full, tiny, records, tmp_path / "b", start=tmp_path / "a")
    with pytest.raises(InputError, match="a has r 4, not 8"):
        other = quick.model_copy(update={"rank": 8})
        run(other, tiny, records, tmp_path / "c", start=tmp_path / "a")


def test_an_empty_subset_is_refused(
    quick: TrainingOptions, tiny: ModelOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the subset is empty"):
        run(quick, tiny, pl.DataFrame(schema=RECORD_SCHEMA), tmp_path / "a")


def test_records_that_do_not_fit_are_left_out_and_counted(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    long = records.head(1).with_columns(
        record_id=pl.lit("0" * 32), output=pl.lit(" ".join(["one"] * 100))
    )
    log = run(quick, tiny, pl.concat([records, long]), tmp_path / "a")
    assert log.records_used == 12
    assert list(log.records_left_out) == ["0" * 32]
    with pytest.raises(InputError, match="none of the subset's 1 records"):
        run(quick, tiny, long, tmp_path / "b")


def test_a_loss_that_is_not_finite_names_the_step(
    tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    wild = TrainingOptions(method="full", steps=50, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DeliftError, match=r"at training step \d+ of 50"):
        run(wild, tiny, records, tmp_path / "a")


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bytes(
    tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    options = TrainingOptions(
        rank=4, alpha=8, steps=9, batch_size=5, dropout=0.3, checkpoint_every=4
    )
    kept = tmp_path / "checkpoints"

    class Killed(Exception):
        pass

    def kill(step: int, _: Mapping[str, float]) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        run(options, tiny, records, tmp_path / "a", checkpoints=kept, on_step=kill)
    seen: list[int] = []
    log = run(
        options,
        tiny,
        records,
        tmp_path / "b",
        checkpoints=kept,
        on_step=lambda s, _: seen.append(s),
    )
    whole = run(options, tiny, records, tmp_path / "c")
    assert (log.resumed_at, whole.resumed_at) == (4, None)
    assert seen == [4, 5, 6, 7, 8]
    assert log.losses == whole.losses
    assert files(tmp_path / "b") == files(tmp_path / "c")
    another = run(options, tiny, records.head(6), tmp_path / "d", checkpoints=kept)
    assert another.resumed_at is None


def test_gradient_checkpointing_changes_no_loss(
    quick: TrainingOptions, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    plain = run(quick, tiny, records, tmp_path / "a")
    saving = quick.model_copy(update={"gradient_checkpointing": True})
    assert run(saving, tiny, records, tmp_path / "b").losses == pytest.approx(plain.losses)


def test_qlora_without_its_package_is_refused(
    quick: TrainingOptions,
    tiny: ModelOptions,
    records: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from delift_pipeline.scoring import model

    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    options = quick.model_copy(update={"method": "qlora"})
    with pytest.raises(InputError, match=r"pip install 'delift-pipeline\[qlora\]'"):
        run(options, tiny, records, tmp_path / "a")


def test_loss_curve_is_a_png() -> None:
    assert loss_curve_png([3.0, 2.0, 1.0] * 20).startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_of_a_short_dtype(
    method: str, tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path
) -> None:
    """Steps are kept in float32 even where the model computes, and is written, in 16 bits."""
    short = tiny.model_copy(update={"dtype": "bfloat16"})
    options = TrainingOptions.model_validate(
        {"method": method, "steps": 60, "batch_size": 12, "learning_rate": 1e-2}
    )
    log = run(options, short, records, tmp_path / "a")
    assert log.last_loss < log.first_loss / 2
    weights = load_file(next((tmp_path / "a").glob("*.safetensors")))
    expected = torch.float32 if method == "lora" else torch.bfloat16
    assert {tensor.dtype for tensor in weights.values()} == {expected}
