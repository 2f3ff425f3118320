from contextlib import closing
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from tokenizers import Tokenizer

from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.logprobs import open_model, score
from reactune.model.prompt import assemble, completion_ids, load_chat, render, write_prompt_folder
from reactune.records import Completion, ModelVersion, Prompt, Sampling
from reactune.release.gguf import export_gguf
from reactune.release.llamacpp import LlamaCpp
from reactune.release.parity import (
    Served,
    answer_ids,
    check,
    compare,
    greedy_choices,
    special_tokens,
)
from release_fixtures import token_count

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TIP = "Take the dog out before dinner."
CONTEXTS = [
    {"time_of_day": "evening", "open_tasks": ["buy 12 eggs", "call mum"]},
    {"time_of_day": "morning", "open_tasks": ["pay the bill of 2024-11-30"]},
    {"free_text": "I slept badly and have 3 meetings before 10:45"},
    {"recent_tips": ["Drink a glass of water."], "time_of_day": "noon"},
]
SETTINGS = ExportConfig()


@pytest.fixture(scope="module")
def smollm2():
    return base_model(ModelConfig())


@pytest.fixture(scope="module")
def chat(smollm2):
    return load_chat(smollm2.folder, PromptConfig())


@pytest.fixture(scope="module")
def prompts(chat):
    return [assemble(chat, "tip", context) for context in CONTEXTS]


@pytest.fixture(scope="module")
def completions(chat, prompts):
    tips = [TIP, "Buy the eggs on the way home.", "Call mum at 18:30.", TIP]
    return [completion_ids(chat, tip) for tip in tips]


@pytest.fixture(scope="module")
def adapter(smollm2, chat, prompts, tmp_path_factory):
    """A few steps on one tip: enough to write it for a context that was not among them."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    completion = list(completion_ids(chat, TIP))
    with open_model(smollm2.folder, threads=1) as model:
        settings = LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules="all-linear")
        tuned = get_peft_model(model, settings)
        trained = [p for p in tuned.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-3)
        for step in range(10):
            prompt = list(prompts[step % 2].token_ids)
            ids = torch.tensor([prompt + completion])
            labels = torch.tensor([[-100] * len(prompt) + completion])
            tuned(input_ids=ids, labels=labels).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        folder = tmp_path_factory.mktemp("adapter")
        tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(smollm2, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_gguf(smollm2, None, folder / "base.gguf", settings=ExportConfig())
    export_gguf(smollm2, adapter, folder / "q8_0.gguf", settings=ExportConfig())
    return folder


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("xllamacpp")
    with closing(LlamaCpp(ServeConfig(threads=1, parallel=1, timeout_seconds=120))) as runtime:
        yield runtime


@pytest.fixture
def version(smollm2, chat, adapter, exported):
    write_prompt_folder(chat, smollm2.folder, exported / "prompt")

    def make(name, adapter=adapter):
        return ModelVersion(
            version=2,
            name=name,
            run_id="",
            gguf=exported / f"{name}.gguf",
            sha256="",
            prompt_folder=exported / "prompt",
            base=smollm2.name,
            quantisation=name,
            adapter=adapter,
        )

    return make


@pytest.fixture
def checked(smollm2, chat, prompts, completions, server):
    """Runs `check` on the module's prompts; keywords replace its arguments."""
    standard = {"chat": chat, "prompts": prompts, "completions": completions, "runtime": server}
    standard |= {"settings": SETTINGS, "max_tokens": 16, "threads": 1}
    return lambda model, **changes: check(smollm2, model, **standard | changes)


@pytest.mark.slow
def test_what_was_learned_is_in_the_file_and_is_served(
    version, server, prompts, completions, checked
):
    name = "q8_0"
    report = checked(version(name), max_tokens=24)
    assert report.failures == ()
    assert report.prompts == len(CONTEXTS)
    assert report.tokens == sum(map(len, completions))
    assert 0 < report.logprob_gap < 0.1
    assert report.learned_kept == pytest.approx(1, abs=0.02)
    assert report.greedy_agreement == report.same_tips == 1
    greedily = Sampling(temperature=0.0, top_p=1.0, max_tokens=24, seed=0)
    answer = server.generate(version(name), prompts[3].text, greedily)
    assert (answer.text, answer.stopped) == (TIP, "stop")
    assert "as trained" in report.line()


@pytest.mark.slow
def test_the_base_is_served_as_it_is(version, checked):
    report = checked(version("base", adapter=None))
    assert report.failures == ()
    assert report.learned_kept is None


@pytest.mark.slow
def test_a_file_without_what_was_learned_fails_both_ways(version, checked):
    report = checked(version("base"))
    gap, kept, agreement = report.failures
    assert "log-probabilities differ" in gap
    assert "of what was learned is in the file" in kept
    assert "greedy tokens agree" in agreement
    assert abs(report.learned_kept) < 0.1
    assert report.same_tips == 0


@pytest.mark.slow
def test_a_server_that_reads_another_prompt_than_was_trained_fails(
    smollm2, version, prompts, checked
):
    other = load_chat(smollm2.folder, PromptConfig(system="Be brief."))
    drifted = [
        replace(prompt, text=assemble(other, "tip", context).text)
        for prompt, context in zip(prompts, CONTEXTS, strict=True)
    ]
    report = checked(version("q8_0"), prompts=drifted, max_tokens=8)
    expected = len(prompts[0].token_ids)
    assert any(f"template gives {expected}" in failure for failure in report.failures)


@pytest.mark.slow
def test_a_chat_template_of_the_server_must_make_the_prompts_that_were_trained(
    chat, version, server, prompts, completions, checked
):
    class WithTemplate(LlamaCpp):
        def chat_prompt_tokens(self, model, user_text):
            right = token_count(render(chat, user_text))
            return right if "12 eggs" in user_text else right + 1

    with closing(WithTemplate(server.settings)) as runtime:
        some = {"prompts": prompts[:2], "completions": completions[:2]}
        report = checked(version("q8_0"), runtime=runtime, max_tokens=4, **some)
    expected = len(prompts[1].token_ids)
    assert [failure for failure in report.failures if "chat" in failure] == [
        f"the server's chat endpoint reads {expected + 1} prompt tokens where the template gives "
        f"{expected}"
    ]


def test_greedy_choices_are_what_the_model_writes_by_itself(smollm2, prompts):
    import torch

    ids = torch.tensor([prompts[1].token_ids])
    with open_model(smollm2.folder, threads=1) as model:
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )[0, ids.shape[1] :].tolist()
        changed = [*written[:5], 17, *written[6:]]
        rows = [(prompts[1].token_ids, written), (prompts[1].token_ids, changed)]
        same, other = greedy_choices(model, rows)
        assert list(same) == written
        assert list(other[:6]) == written[:6]
        assert len(score(model, rows)[0]) == len(written)


def test_an_answer_ends_in_the_stop_token_only_if_the_server_stopped(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    stop = tokenizer.token_to_id("<|im_end|>")
    said = Completion("Go now", prompt_tokens=1, tokens=2, stopped="stop", seconds=0)
    ids = answer_ids(tokenizer, said, stop=stop)
    assert ids[-1] == stop
    assert tokenizer.decode(ids) == "Go now"
    assert answer_ids(tokenizer, replace(said, stopped="length"), stop=stop) == ids[:-1]
    assert "<|im_end|>" in special_tokens(tokenizer)


def served(given=(1, 2, 3), chosen=(1, 2, 3), *, chat_tokens=None, **answer):
    completion = {"text": "Go", "prompt_tokens": 4, "tokens": 3, "stopped": "stop", "seconds": 0.0}
    prompt = Prompt("tip", "{}", "text", (5, 6, 7, 8))
    return Served(prompt, Completion(**completion | answer), given, chosen, chat_tokens)


def judge(*answers, trained=((-1.0, -2.0),), exported=((-1.01, -1.97),), untrained=None):
    return compare(
        [np.array(scores) for scores in trained],
        [np.array(scores) for scores in exported],
        untrained=untrained and [np.array(scores) for scores in untrained],
        served=answers or (served(),),
        special_tokens=("<|im_end|>",),
        settings=SETTINGS,
        max_tokens=8,
        seconds=1.0,
    )


def test_gaps_are_absolute_and_per_token():
    report = judge(trained=[(-1.0, -2.0), (-3.0,)], exported=[(-1.01, -1.98), (-3.03,)])
    assert report.logprob_gap == pytest.approx((0.01 + 0.02 + 0.03) / 3)
    assert report.largest_gap == pytest.approx(0.03)
    assert report.failures == ()


def test_agreement_counts_each_token_at_its_place_and_same_tips_whole_answers():
    report = judge(
        served(chosen=(1, 2, 3)), served(chosen=(1, 9, 3)), served(given=(4,), chosen=(4,))
    )
    assert report.greedy_agreement == pytest.approx((3 + 2 + 1) / 7)
    assert report.same_tips == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("share", "failing"), [(1.0, False), (0.8, True), (0.0, True), (1.5, True)]
)
def test_what_is_kept_is_the_slope_of_the_files_gains(share, failing):
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(6)
    untrained = rng.normal(-4, 1, 400)
    gained = rng.normal(0.2, 0.5, 400)
    exported = untrained + share * gained + rng.normal(0, 0.08, 400)
    report = judge(trained=[untrained + gained], exported=[exported], untrained=[untrained])
    slope, variance = curve_fit(lambda x, a: a * x, gained, exported - untrained)
    assert report.learned_kept == pytest.approx(slope[0])
    assert report.kept_error == pytest.approx(variance[0, 0] ** 0.5, rel=0.01)
    assert any("of what was learned" in failure for failure in report.failures) == failing


def test_noise_alone_does_not_fail_a_small_change():
    """Where training changed little, the slope is uncertain, and only certain losses fail."""
    rng = np.random.default_rng(8)
    untrained = rng.normal(-4, 1, 300)
    trained = untrained + rng.normal(0, 0.02, 300)
    exported = trained + rng.normal(0, 0.05, 300)
    assert judge(trained=[trained], exported=[exported], untrained=[untrained]).failures == ()


def test_a_training_that_changed_nothing_has_nothing_to_keep():
    report = judge(trained=[(-1.0,)], exported=[(-1.02,)], untrained=[(-1.0,)])
    assert (report.learned_kept, report.failures) == (None, ())


@pytest.mark.parametrize("gap", [0.1001, nan])
def test_a_gap_that_is_too_wide_or_no_number_fails(gap):
    report = judge(trained=[(-1.0,)], exported=[(-1.0 - gap,)])
    assert "above 0.1" in report.failures[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"prompt_tokens": 37}, "37 prompt tokens where the template gives 4"),
        ({"chat_tokens": 16}, "chat endpoint reads 16"),
        ({"text": "Go<|im_end|>"}, "does not stop at"),
        ({"tokens": 9, "stopped": "length"}, "9 tokens, 8 were allowed"),
        ({"tokens": 3, "stopped": "length"}, "broke off after 3 of 8"),
        ({"chosen": (9, 2, 3)}, "67% of greedy tokens agree, below 90%"),
        ({"given": (), "chosen": ()}, "0% of greedy tokens agree"),
    ],
    ids=str,
)
def test_each_fault_of_the_server_is_named_once(answer, said):
    report = judge(served(**answer), served(**answer))
    assert len(report.failures) == 1
    assert said in report.failures[0]
    assert said in report.line()


def test_a_full_answer_that_reaches_its_limit_is_no_fault():
    assert judge(served(tokens=8, stopped="length")).failures == ()


def test_parity_needs_prompts_with_completions_that_end_alike(prompts, checked):
    for given, completions in (([], []), (prompts[:2], [(1, 2)]), (prompts[:2], [(1, 2), (1, 3)])):
        with pytest.raises(ReleaseError, match="stop token"):
            checked(None, prompts=given, completions=completions)
