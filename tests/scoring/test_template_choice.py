"""Which prompt template a model gets if the user names none."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.engines import load_for_evaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model import load_encoder
from delift_pipeline.scoring.options import ModelOptions, options_of_other
from delift_pipeline.scoring.template_choice import with_chosen_template
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.setup import load_trainable

DEMO_FINGERPRINT = "8748f34c4caa2bd7552f1358276a914a"
"""The fingerprint of the demo model with the default template, when the default was `plain`."""
BY_PLACE = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
BROKEN = "{% for m in messages %}{{ m.content }"
TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat(chat_folder: Path) -> ModelOptions:
    """A model with a chat template."""
    return ModelOptions(model=str(chat_folder), device="cpu")


@pytest.fixture
def folder(chat_folder: Path, tmp_path: Path) -> Path:
    """A copy of this model to be changed."""
    return shutil.copytree(chat_folder, tmp_path / "copy")


def named(options: ModelOptions, template: str) -> ModelOptions:
    return options.model_copy(update={"template": template})


def test_a_model_with_a_chat_template_gets_it(chat: ModelOptions) -> None:
    found = fingerprint_of(chat)
    assert found.template == "chat" and found == fingerprint_of(named(chat, "chat"))
    encoder = load_encoder(chat)
    assert encoder.template.name == "chat" and encoder.notes == ()
    assert with_chosen_template(chat).template == "chat"


def test_a_model_without_one_keeps_plain_and_its_fingerprint(tiny: ModelOptions) -> None:
    found = fingerprint_of(tiny)
    assert found.template == "plain" and found == fingerprint_of(named(tiny, "plain"))
    assert load_encoder(tiny).template.name == "plain"
    assert fingerprint_of(ModelOptions(model="demo")).digest == DEMO_FINGERPRINT


def test_a_template_that_is_named_wins(chat: ModelOptions) -> None:
    for template in ("plain", "paper"):
        asked = named(chat, template)
        assert fingerprint_of(asked).template == template
        assert load_encoder(asked).template.name == template
        assert with_chosen_template(asked) == asked


@pytest.mark.parametrize(
    ("source", "why"), [(BY_PLACE, "differently by its place"), (BROKEN, "cannot be read")]
)
def test_a_chat_template_that_cannot_be_used_gives_plain_and_a_note(
    folder: Path, source: str, why: str
) -> None:
    (folder / "chat_template.jinja").write_text(source)
    options = ModelOptions(model=str(folder), device="cpu")
    encoder = load_encoder(options)
    assert fingerprint_of(options).template == encoder.template.name == "plain"
    (note,) = encoder.notes
    assert why in note and note.endswith("so records are written with the template plain")
    with pytest.raises(InputError, match=why):
        load_encoder(named(options, "chat"))


def test_a_chat_template_that_trims_is_used(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TRIMMING)
    encoder = load_encoder(ModelOptions(model=str(folder), device="cpu"))
    assert encoder.template.name == "chat"
    assert "takes white space off" in encoder.notes[0]


def test_the_choice_needs_no_torch(chat: ModelOptions) -> None:
    code = (
        "import sys; from delift_pipeline.scoring.fingerprint import fingerprint_of as f; "
        "from delift_pipeline.scoring.options import ModelOptions as O; "
        "print(f(O(model=sys.argv[1])).template); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, chat.model]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "chat"


def test_the_chat_template_of_a_model_is_not_asked_of_another(
    chat: ModelOptions, tiny: ModelOptions
) -> None:
    other = options_of_other(named(chat, "chat"), tiny.model)
    assert fingerprint_of(other).template == "plain"
    assert options_of_other(named(chat, "paper"), tiny.model).template == "paper"


def test_training_and_evaluation_read_the_chat_template(
    chat: ModelOptions, tiny: ModelOptions
) -> None:
    measured = EvaluationOptions(metrics=("answer_loss",))
    for model, template in ((chat, "chat"), (tiny, "plain")):
        trained = load_trainable(TrainingOptions(steps=1), model, None)
        assert trained.encoder.template.name == template
        assert trained.fingerprint == fingerprint_of(model).digest
        assert load_for_evaluation(model, None, measured).encoder.template.name == template


def test_a_whole_trained_model_has_the_template_of_its_base(
    chat: ModelOptions, folder: Path
) -> None:
    # The folder of the trained model has a chat template that the base does not have, and that
    # cannot be used.
    (folder / "chat_template.jinja").write_text(BY_PLACE)
    plain = named(chat, "plain")
    measured = EvaluationOptions(metrics=("answer_loss",))
    assert load_for_evaluation(plain, folder, measured).encoder.template.name == "plain"
    with pytest.raises(InputError, match="differently by its place"):
        load_for_evaluation(chat, folder, measured)
    shutil.copy(Path(chat.model) / "chat_template.jinja", folder)
    loaded = load_for_evaluation(chat, folder, measured)
    assert loaded.encoder.template.name == "chat"
