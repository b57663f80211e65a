"""The loop's configuration: sections are checked against their step's keys before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rgalign.config import dump_config, load_config, parse_config
from rgalign.errors import ConfigError, ProvenanceError, RgalignError
from rgalign.files import write_json
from rgalign.models.loss import LossConfig
from rgalign.training.alignment import alignment_config
from rgalign.training.loop.loop import run_loop
from rgalign.training.loop.loop_config import NOWHERE, LoopConfig

Values = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": 2}, "did you mean 'loops'"),
        ({"stage1": {"epoch": 3}}, "section .*did you mean 'epochs'"),
        ({"align": {"tuneing": "upper"}}, "did you mean 'tuning'"),
        ({"align": {"max_rejected": 1}}, "^loop.yaml, section align: required a known key .it is 'dpo.max_rejected'"),
        ({"reward": {"fold": 3}}, "did you mean 'folds'"),
        ({"select": {"strategy": "V5"}}, "section select"),
        ({"embed": {"poling": "ltp"}}, "did you mean 'pooling'"),
        ({"generate": {"latents": "mine"}}, "section generate: required no key 'latents'"),
        ({"stage3": {"warm_start": "mine"}}, "no key 'warm_start'"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"stage1": {"model": {"model": "baseline"}}}, "section stage1: .*baseline reads no latent"),
        ({"embed": {"pooling": "mean"}}, "section embed: required pooling ltp"),
        ({"embed": {"pooling": "external"}, "objective": "dpo"}, "section embed: .* received external"),
    ],
)
def test_wrong_keys_are_named_before_anything_runs(loop_values: Values, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(LoopConfig, loop_values(**changes), where="loop.yaml")


def test_sections_lie_over_each_other(loop_values: Values) -> None:
    values = loop_values(objective="dpo", sft={"epochs": 2}, stage3={"epochs": 4})
    config = parse_config(LoopConfig, values, where="loop.yaml")
    assert config.baseline_config(seed=3).model.model == "baseline"
    assert config.baseline_config(seed=3).batch_size == config.stage1_config(NOWHERE, seed=3).batch_size == 32
    stage3 = config.recalibration_config(Path("new"), Path("old"), Path("chosen"), seed=3)
    assert (stage3.epochs, stage3.patience, stage3.seed) == (4, 4, 3)
    assert (stage3.latents, stage3.warm_start, stage3.without) == (Path("new"), Path("old"), None)
    unaligned = config.model_copy(update={"recalibrate_on": "unaligned"})
    assert unaligned.recalibration_config(Path("new"), Path("old"), Path("chosen"), seed=3).without == Path("chosen")
    assert config.sft_config(NOWHERE, NOWHERE, NOWHERE).epochs == 2
    assert config.align_config(NOWHERE, NOWHERE, NOWHERE, NOWHERE).epochs == 1


def test_the_baseline_trains_with_the_loss_of_stage_1(loop_values: Values) -> None:
    loss = {"mask_unseen": False, "logit_scale_init": 9.0, "part_weight": 0.5, "title_weight": 1.0}

    def baseline(**changes: Any) -> LossConfig:
        values = loop_values(stage1={"model": {"model": "qe_rec", "loss": loss}}, **changes)
        return parse_config(LoopConfig, values, where="loop.yaml").baseline_config(seed=0).model.loss

    assert baseline() == LossConfig(mask_unseen=False, logit_scale_init=9.0)
    assert baseline(baseline={"model": {"model": "baseline", "loss": {"target": "exp"}}}).mask_unseen


def test_recalibration_trains_the_query_tower_unless_told_otherwise(loop_values: Values) -> None:
    def trained(**stage3: str) -> str:
        config = parse_config(LoopConfig, loop_values(stage3=stage3), where="loop.yaml")
        return config.recalibration_config(NOWHERE, NOWHERE, NOWHERE, seed=0).trained

    assert trained() == "query"
    assert trained(trained="all") == "all"


def test_a_null_over_a_preset_survives_the_file(loop_values: Values, tmp_path: Path) -> None:
    values = loop_values(alignment={"preset": "paper", "neftune_alpha": None, "upper_layers": 6})
    config = parse_config(LoopConfig, values, where="loop.yaml")
    dump_config(config, tmp_path / "config.yaml")
    read = load_config(LoopConfig, tmp_path / "config.yaml")
    assert read == config
    assert read.sft_config(NOWHERE, NOWHERE, NOWHERE).neftune_alpha is None


def test_what_is_missing_is_said_before_anything_runs(
    loop_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, error: type[RgalignError] = ConfigError, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            run_loop(parse_config(LoopConfig, loop_values(**changes), where="loop.yaml"), run)

    run = tmp_path / "run"
    monkeypatch.delenv("NO_KEY", raising=False)
    served = {"kind": "openai", "name": "gpt", "base_url": "http://localhost", "model": "m", "api_key_env": "NO_KEY"}
    refused("teacher 'gpt': .*environment variable NO_KEY", generate={"teachers": [served]})
    expected = "section select: .*a teacher named 'reasoner' .*; received V2 with the teachers transition"
    refused(expected, select={"strategy": "V2"}, generate={"teachers": [{"kind": "transition"}]})
    (tmp_path / "semantic").mkdir()
    write_json(tmp_path / "semantic" / "semantic.json", {"train": "abc"})
    refused("semantic: .*trained on clicks", ProvenanceError, semantic=str(tmp_path / "semantic"))
    monkeypatch.setattr(alignment_config, "find_spec", lambda name: None)
    zero = {"alignment": {"preset": "paper", "tuning": "full"}, "sft": {"zero_stage": 0}}
    refused("alignment: .*extra `zero`.*zero_stage 3, and no deepspeed", **zero)
    assert not run.exists()
