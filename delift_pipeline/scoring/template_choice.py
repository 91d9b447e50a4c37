"""Choose the prompt template of a model. This module loads neither torch nor the tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.prompts.chat import (
    read_chat_template,
    read_special_tokens,
    reason_unusable,
)
from delift_pipeline.prompts.template import Template, load_template
from delift_pipeline.scoring.model_files import model_folder
from delift_pipeline.scoring.options import AUTO, CHAT, PLAIN, ModelOptions


@dataclass(frozen=True)
class TemplateChoice:
    """The prompt template of a model.

    Attributes:
        setting: The template as `ModelOptions` names it; never `auto`.
        chat: The model's own chat template, if it has one.
        note: Why the model's own chat template is not used, for the user; None if it is used, or if
            the user did not leave the choice to the program.
    """

    setting: str
    template: Template
    chat: str | None
    note: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the choice."""
        return (self.note,) if self.note else ()


def choose_template(options: ModelOptions, folder: Path) -> TemplateChoice:
    """Return the template that the options name; for `auto` the model's own, else `plain`.

    A chat template that the program cannot use is no reason to refuse the model. Then the choice
    has a note with the reason. `folder` has the model's files (`model_folder`).

    Raises:
        InputError: the named template does not exist or is not valid.
    """
    chat, setting, note = read_chat_template(folder), options.template, None
    if setting == AUTO:
        setting = PLAIN if chat is None else CHAT
        if chat is not None and (reason := reason_unusable(chat, read_special_tokens(folder))):
            setting = PLAIN
            note = f"{reason}, so records are written with the template {PLAIN}"
    return TemplateChoice(setting, load_template(setting), chat, note)


def with_chosen_template(options: ModelOptions) -> ModelOptions:
    """Return the options with the name of the chosen template in place of `auto`.

    Raises:
        InputError: the model cannot be used.
    """
    if options.template != AUTO:
        return options
    return options.model_copy(
        update={"template": choose_template(options, model_folder(options)).setting}
    )
