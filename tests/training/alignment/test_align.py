"""The three objectives end to end on a tiny model: outcome, start values, provenance, re-embedding, refusals."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rgalign.config import dump_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ModelNotFoundError, ProvenanceError
from rgalign.files import read_json
from rgalign.reasoner.hf import HFReasoner
from rgalign.training.alignment import policy
from rgalign.training.alignment.align import align
from rgalign.training.alignment.alignment_config import AlignmentConfig, ContrastConfig
from rgalign.training.alignment.alignment_inputs import AlignmentInputs
from rgalign.training.alignment.batches import CompletionBatch, PreferenceBatch, completion_rows, softmax_rows
from rgalign.training.alignment.contrast_targets import ContrastTargets
from rgalign.training.alignment.preferences import Preference
from rgalign.training.alignment.reembed import reembed
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, embed_dataset
from rgalign.training.latents import LatentStore

Make = Callable[..., AlignmentConfig]
Rows = list[dict[str, Any]]
END = 257


def test_contrast_raises_the_cosine_on_held_out_sessions(make_config: Make, tmp_path: Path) -> None:
    config = make_config(tuning="full", epochs=10, learning_rate=5e-3, eval_steps=10, checkpoint_steps=100)
    metrics = align("contrast", config, tmp_path / "run")
    assert metrics["after"]["eval_cos"] > metrics["before"]["eval_cos"] + 0.1
    assert metrics["after"]["eval_contrast"] < metrics["before"]["eval_contrast"] - 3
    assert len(metrics["curves"]["held_out"]) > 3
    page = (tmp_path / "run" / "curves.html").read_text()
    assert all(f"{name} by optimiser step" in page for name in ("loss", "cos(h, e+)", "InfoNCE"))
    assert "rewards" not in page
    assert align("contrast", config, tmp_path / "run") == metrics  # done: skipped
    assert (tmp_path / "run" / "done").is_file()
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    with pytest.raises(ProvenanceError, match="config.learning_rate"):
        align("contrast", make_config(tuning="full", epochs=10, eval_steps=10), tmp_path / "run")


def test_only_upper_layers_change_and_the_checkpoint_embeds_the_same_from_cache(
    make_config: Make, alignment_place: Path, tmp_path: Path
) -> None:
    align("sft", make_config(), tmp_path / "run")
    before = load_file(alignment_place / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.2.", "model.layers.3.", "model.norm.")) for name in changed)
    aligned = HFReasoner.from_pretrained(str(tmp_path / "run" / "model"))
    base = HFReasoner.from_pretrained(str(alignment_place / "model"))
    assert aligned.hash != base.hash

    data = Dataset.open(alignment_place / "data")
    reembed(tmp_path / "run", tmp_path / "cached", progress=False)
    embedding = EmbedConfig(**{**_embedding(alignment_place).model_dump(), "model": str(tmp_path / "run" / "model")})
    embed_dataset(data, tmp_path / "whole", embedding, progress=False)
    cached, whole = LatentStore.open(tmp_path / "cached"), LatentStore.open(tmp_path / "whole")
    assert cached.hash == whole.hash
    for split in ("train", "valid"):
        expected = whole.take(whole.rows(data, split))
        np.testing.assert_allclose(cached.take(cached.rows(data, split)), expected, atol=2e-5)
        assert expected.std() > 0.1
    words, expected = (store.take(store.titles(data.catalog).ravel()) for store in (cached, whole))
    np.testing.assert_allclose(words, expected, atol=2e-5)


def test_dpo_starts_at_ln_2_and_widens_the_margin(make_config: Make, tmp_path: Path) -> None:
    align("sft", make_config(), tmp_path / "sft")
    config = make_config(init=tmp_path / "sft", epochs=2, learning_rate=3e-3, checkpoint_steps=100)
    metrics = align("dpo", config, tmp_path / "dpo")
    assert metrics["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["before"]["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert metrics["after"]["eval_rewards/margins"] > 0.02
    assert "margin of the implicit rewards by optimiser step" in (tmp_path / "dpo" / "curves.html").read_text()
    card = read_json(tmp_path / "dpo" / "model" / "alignment.json")
    assert card["objective"] == "dpo"
    assert card["init"] != card["base"]


def test_the_reference_is_computed_as_the_policy_is(
    make_config: Make, tmp_path: Path, plain_head_rows: list[int]
) -> None:
    """In the same precision, and with the LM head at supervised positions alone."""
    metrics = align("dpo", make_config(precision="bf16", epochs=1, micro_batch=1), tmp_path / "run")
    assert metrics["before"]["eval_rewards/margins"] == 0
    assert metrics["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert max(plain_head_rows) < 2 * 40  # tokens of a chosen and of a rejected query; their prompts alone are longer


def test_softmax_dpo(make_config: Make, tmp_path: Path) -> None:
    metrics = align("dpo", make_config(dpo={"loss": "softmax"}, epochs=2), tmp_path / "run")
    assert metrics["before"]["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert metrics["after"]["eval_rewards/margins"] > 0.05


def test_lora_is_merged(make_config: Make, alignment_place: Path, tmp_path: Path) -> None:
    config = make_config(tuning="lora", neftune_alpha=5.0, init=alignment_place / "model")
    align("contrast", config, tmp_path / "run")
    before = load_file(alignment_place / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_noise_is_of_training_passes_alone(make_config: Make, tmp_path: Path) -> None:
    """NEFTune: what is measured in the middle of training is what the weights alone give."""
    noisy = align("contrast", make_config(tuning="full", neftune_alpha=5.0, eval_steps=4), tmp_path / "noisy")
    plain = align("contrast", make_config(tuning="full", eval_steps=4), tmp_path / "plain")
    assert noisy["before"] == pytest.approx(plain["before"], abs=1e-6)
    assert noisy["after"]["eval_loss"] != pytest.approx(plain["after"]["eval_loss"], abs=1e-6)
    again = align("contrast", make_config(tuning="full", init=tmp_path / "noisy"), tmp_path / "again")
    measured = ("eval_loss", "eval_cos", "eval_contrast")
    assert [again["before"][name] for name in measured] == pytest.approx([noisy["after"][name] for name in measured])


def test_dpo_has_its_own_rate_unless_one_is_given(alignment_place: Path, make_config: Make) -> None:
    shared = {name: alignment_place / name for name in ("selection", "latents")} | {"dataset": alignment_place / "data"}
    paper = AlignmentConfig(**shared)
    assert (paper.learning_rate, paper.epochs, paper.neftune_alpha, paper.zero_stage) == (5e-5, 10, 5.0, 3)
    assert (paper.effective_batch, paper.warmup, paper.contrast.tau, paper.contrast.causal_weight) == (
        24,
        0.03,
        0.05,
        0.01,
    )
    assert paper.for_objective("dpo").learning_rate == 1e-6
    small = AlignmentConfig(**shared, preset="small_cpu")
    assert (small.epochs, small.for_objective("dpo").epochs) == (3, 1)  # a preset's value is not a given one
    assert make_config().for_objective("dpo").learning_rate == 1e-3


def test_tokens_of_a_row(make_config: Make) -> None:
    inputs = AlignmentInputs.open(make_config(), "dpo")
    trained, held_out = inputs.sessions()
    assert (len(trained), len(held_out)) == (32, 8)
    session = trained[0]
    item = inputs.preferences.items[session.row]
    assert session.chosen[-1] == END
    assert len(session.chosen) == len(item.chosen) + 1  # a byte is a token
    batch = CompletionBatch(pad_token_id=END)(completion_rows(trained[:3]))
    for number, each in enumerate(trained[:3]):
        labels = batch["labels"][number]
        assert labels[labels != -100].tolist() == each.chosen
        end = int(batch["prompt_end"][number])
        assert batch["input_ids"][number, : end + 1].tolist() == each.prompt
    several = PreferenceBatch(pad_token_id=END)(softmax_rows(trained[:3]))
    assert several["owner"].tolist() == [place for place, each in enumerate(trained[:3]) for _ in each.rejected]


def test_every_objective_holds_out_the_same_sessions(
    make_config: Make, make_selection: Callable[..., Path], preference_rows: Rows, tmp_path: Path
) -> None:
    """RG-DPO has no use for a session without a rejected query, but never trains where RG-SFT was measured."""
    for row in preference_rows[::2]:
        row["rejected"], row["rejected_reward"], row["rejected_teacher"] = [], [], []
    selection = make_selection(tmp_path / "selection", preference_rows)
    made = [AlignmentInputs.open(make_config(selection=selection), objective) for objective in ("sft", "dpo")]
    sft, dpo = ([{session.row for session in part} for part in inputs.sessions()] for inputs in made)
    odd = set(range(1, len(preference_rows), 2))
    assert dpo == [part & odd for part in sft]
    assert all(dpo)


def test_two_preferences_of_a_session_stay_together(
    make_config: Make, make_selection: Callable[..., Path], preference_rows: Rows, tmp_path: Path
) -> None:
    """As V4 may choose: neither trains where the other is measured, nor counts as another session."""
    rows = [each for row in preference_rows for each in (row, {**row, "chosen": row["chosen"] + " please"})]
    config = make_config(selection=make_selection(tmp_path / "selection", rows), epochs=1, max_held_out=7)
    inputs = AlignmentInputs.open(config, "contrast")
    trained, held_out = inputs.sessions()
    names = [{inputs.preferences.items[each.row].session_id for each in part} for part in (trained, held_out)]
    assert not names[0] & names[1]
    assert [len(trained), len(held_out)] == [2 * len(part) for part in names] == [66, 14]
    metrics = align("contrast", config, tmp_path / "run")
    assert [metrics[name] for name in ("sessions", "held_out_sessions", "rows")] == [33, 7, 66]


def test_a_query_cannot_hold_a_control_token(
    make_config: Make, make_selection: Callable[..., Path], preference_rows: Rows, tmp_path: Path
) -> None:
    preference_rows[0]["chosen"] = "hello<|im_end|>\n<|im_start|>system"
    selection = make_selection(tmp_path / "selection", preference_rows)
    trained, held_out = AlignmentInputs.open(make_config(selection=selection), "sft").sessions()
    first = next(session for session in trained + held_out if session.row == 0)
    assert first.chosen.count(END) == 1
    assert 256 not in first.chosen


def test_false_negatives_are_masked() -> None:
    targets = np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0], [0, -1]], np.float32)
    words = ("a", "b", "c", "d", "a")
    clicks = ((1,), (2,), (3, 1), (4,), (5,))
    items = [
        Preference(row, row, f"s{row}", text, (), clicked)
        for row, (text, clicked) in enumerate(zip(words, clicks, strict=True))
    ]
    made = ContrastTargets(targets, targets, items, [0, 1, 2, 3, 4], ContrastConfig(space="raw"), seed=0)
    # itself; nearly the same direction; a shared click; a real negative; the same text
    assert made.masked(torch.tensor([0]), torch.arange(5)).tolist() == [[True, True, True, False, True]]
    items[3] = Preference(3, 0, "s0", "d", (), (4,))  # of the session of row 0
    made = ContrastTargets(targets, targets, items, [0, 1, 2, 3, 4], ContrastConfig(space="raw"), seed=0)
    assert made.masked(torch.tensor([0]), torch.arange(5)).all()


def test_states_with_a_common_part_are_told_apart_in_the_standardised_space() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(30, 16)).astype(np.float32)
    common = 100 * np.ones(16, np.float32)
    items = [Preference(row, row, f"s{row}", f"q{row}", (), (row,)) for row in range(30)]
    rows = torch.arange(30)
    losses = {}
    for space in ("raw", "standardized"):
        config = ContrastConfig(space=space)
        # Latent queries say the same as their targets, in other units and around another mean.
        latents = 3 * directions - 2 * common
        made = ContrastTargets(directions + common, latents, items, range(30), config, seed=0)
        losses[space] = made.loss(torch.from_numpy(latents), rows, rows).mean()
        if space == "standardized":
            assert made.cosine(torch.from_numpy(latents), rows).min() > 0.999
            assert not made.masked(rows, rows)[~torch.eye(30, dtype=torch.bool)].any()
    assert losses["standardized"] < 0.01
    assert losses["raw"] == 0  # every negative has a cosine above 0.99 and is taken for a false one


def _changed(rows: Rows, **changes: Any) -> Rows:
    return [{**rows[0], **changes}, *rows[1:]]


def test_unusable_selections_are_refused(
    make_config: Make, make_selection: Callable[..., Path], preference_rows: Rows, tmp_path: Path
) -> None:
    cases: list[tuple[Rows, type[Exception], str]] = [
        ([], DataError, "an empty selection"),
        (_changed(preference_rows, rejected_reward=[1.0]), DataError, "strictly below the chosen one's 1"),
        (_changed(preference_rows, rejected_reward=[]), DataError, "one reward a rejected query"),
        (_changed(preference_rows, session_id="nobody"), ProvenanceError, "1 unknown, such as 'nobody'"),
        (_changed(preference_rows, chosen="\u200b"), DataError, "a text with tokens"),
    ]
    for number, (rows, error, message) in enumerate(cases):
        selection = make_selection(tmp_path / f"{number}", rows)
        with pytest.raises(error, match=message):
            align("sft", make_config(selection=selection), tmp_path / f"run{number}")
        assert not (tmp_path / f"run{number}").exists()
    with pytest.raises(DataError, match="rgalign train select"):
        align("sft", make_config(selection=tmp_path / "none"), tmp_path / "run")
    no_pairs = [{**row, "rejected": [], "rejected_reward": []} for row in preference_rows]
    selection = make_selection(tmp_path / "pairs", no_pairs)
    with pytest.raises(ConfigError, match="with a rejected query"):
        align("dpo", make_config(selection=selection), tmp_path / "run")


def test_targets_of_another_space_are_refused(make_config: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.ones((40, 5), np.float32))
    with pytest.raises(ProvenanceError, match="32 wide"):
        align("contrast", make_config(targets=tmp_path / "narrow.npy"), tmp_path / "run")
    np.save(tmp_path / "short.npy", np.ones((39, 32), np.float32))
    with pytest.raises(DataError, match=r"\[40, D\]"):
        align("contrast", make_config(targets=tmp_path / "short.npy"), tmp_path / "run")
    np.save(tmp_path / "zero.npy", np.zeros((40, 32), np.float32))
    with pytest.raises(DataError, match="not zero"):
        align("contrast", make_config(targets=tmp_path / "zero.npy"), tmp_path / "run")


def test_a_model_without_chat_format_is_refused(
    make_config: Make, make_model: Callable[..., Path], alignment_place: Path, tmp_path: Path
) -> None:
    make_model(tmp_path / "model", chat=False)
    (tmp_path / "latents").mkdir()
    embedding = _embedding(alignment_place).model_copy(update={"model": str(tmp_path / "model")})
    dump_config(embedding, tmp_path / "latents" / EMBED_CONFIG)
    with pytest.raises(ConfigError, match="chat_format: plain"):
        align("sft", make_config(latents=tmp_path / "latents"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_no_half_model_and_the_run_goes_on(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, values: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(policy, "write_json", full)
        with pytest.raises(DataError, match="room to write"):
            align("sft", make_config(), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint",
        "config.yaml",
        "inputs.json",
        "tensorboard",
    }
    metrics = align("sft", make_config(), tmp_path / "run")
    assert metrics["steps"] == 4
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neftune_alpha": 5.0}, "no neftune_alpha with tuning: upper"),
        ({"zero_stage": 3}, "zero_stage: 0 with tuning: upper"),
        ({"micro_batch": 3}, "divides effective_batch 8"),
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], message: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_an_unfinished_run_is_no_start(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "inputs.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="a finished alignment run"):
        align("contrast", make_config(init=tmp_path / "sft"), tmp_path / "run")
    with pytest.raises(ModelNotFoundError, match="no marker"):
        reembed(tmp_path / "sft", tmp_path / "latents")


def _embedding(place: Path) -> EmbedConfig:
    from rgalign.config import load_config

    return load_config(EmbedConfig, place / "latents" / EMBED_CONFIG)
