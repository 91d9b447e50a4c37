"""How answers are judged. Holds no torch and no client."""

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from delift_pipeline.errors import Refused
from delift_pipeline.evaluation.judge.rubric import VERSION, Mode
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.validation import faults_of

Scoring = Literal["written", "expected"]


class JudgeOptions(BaseModel):
    """Which judge, what it is asked, and how its answer becomes a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        min_length=1, description="Its name at the endpoint; without one a folder or hub id."
    )
    endpoint: str | None = Field(
        default=None, description="An OpenAI-compatible address such as http://127.0.0.1:8000/v1."
    )
    api_key_variable: str = Field(
        default="DELIFT_JUDGE_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the endpoint's key; never stored.",
    )
    mode: Mode = Field(
        default="single", description="single: one score over all dimensions; dimensions: each."
    )
    scoring: Scoring = Field(
        default="written",
        description="written: the score the judge writes down; expected: the mean of the scores "
        "1 to 5 weighted by the probability of their digits.",
    )
    least_mass: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="With `expected`: least probability of the five digits together for which a "
        "score counts.",
    )
    max_tokens: int = Field(default=512, ge=1, description="Longest written judgement, in tokens.")
    seed: int = Field(default=0, ge=0, description="Sent along; the temperature is 0.")
    retries: int = Field(
        default=5, ge=0, description="Further tries of a request that failed, with back-off."
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds a request may take.")
    parallel: int = Field(default=4, ge=1, le=64, description="Requests at a time.")
    price_in: float | None = Field(
        default=None, ge=0, description="Price of a million prompt tokens, for the estimate."
    )
    price_out: float | None = Field(
        default=None, ge=0, description="Price of a million tokens written."
    )

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{endpoint!r} is no http or https address")
        if parts.username or parts.password:
            raise ValueError("an address must hold no password: use the key's variable")
        return endpoint.rstrip("/")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a judgement: not how requests are sent or what they cost."""
        how = {"api_key_variable", "retries", "timeout", "parallel", "price_in", "price_out"}
        kept = self.model_dump(mode="json", exclude=how | {"mode"})
        return kept | {"rubric": VERSION}

    @property
    def digest(self) -> str:
        """32 hexadecimal characters that name the judge."""
        return digest_json(self.identity)[:32]


def read_judge_options(given: Mapping[str, Any]) -> JudgeOptions:
    """Options from settings, validated whole.

    Raises:
        Refused: one fault for each setting that is out of range.
    """
    try:
        return JudgeOptions.model_validate(dict(given))
    except ValidationError as error:
        raise Refused(*faults_of(error, JudgeOptions)) from error
