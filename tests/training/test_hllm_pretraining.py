"""NCE pre-training of the item encoder: what it learns from, that it resumes exactly, whose vectors are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.files import read_json, write_json
from rgalign.intents import IntentCatalog
from rgalign.models.hllm import ITEM_PROMPT
from rgalign.models.nce import ItemProjection, LogitScale, nce_logits, nce_loss
from rgalign.schema import CategoricalFeature, FeatureSchema, SequenceFeature
from rgalign.training.click_pairs import most_clicked, sample_sessions
from rgalign.training.hllm import HLLMConfig, build_semantic, encode_catalog, load_semantic
from rgalign.training.nce_trainer import NCETrainer, schedule

TOPICS = ("parcel", "money", "light")
KINDS = ("lost", "late", "broken", "twice")
QUICK: dict[str, Any] = {
    "dim": 16,
    "batch_size": 32,
    "max_steps": 40,
    "lm_every": 4,
    "fresh_intents": 6,
    "head_learning_rate": 0.01,
    "token_learning_rate": 0.01,
    "checkpoint_seconds": 0,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    # HLLM puts nothing between fields, so a title and the next key are one word here.
    glued = [topic + "description" for topic in TOPICS]
    words = ["[UNK]", *ITEM_PROMPT.replace(":", " :").split(), "title", *glued, *KINDS]
    backend = Tokenizer(WordLevel({word: row for row, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def catalog() -> IntentCatalog:
    pairs = [(topic, kind) for topic in TOPICS for kind in KINDS]
    ids = tuple(f"{row:02d}" for row in range(len(pairs)))
    return IntentCatalog(ids, tuple(topic for topic, _ in pairs), tuple(kind for _, kind in pairs))


def sessions(count: int, seed: int) -> pa.Table:
    """A session clicks an intent of its entry's topic; the last intent of each topic is never clicked."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(3, size=count)
    clicked = topic * 4 + rng.integers(3, size=count)
    past = topic * 4 + rng.integers(4, size=count)
    lists = pa.list_(pa.string())
    return pa.table(
        {
            "session_id": [f"s{row:04d}" for row in range(count)],
            "user_id": ["u"] * count,
            "ts": pa.array([datetime(2026, 1, 1) + timedelta(minutes=row) for row in range(count)], pa.timestamp("us")),
            "region": ["r"] * count,
            "entry": [TOPICS[row] for row in topic],
            "history": pa.array([[f"{row:02d}"] if row % 2 else [] for row in past], lists),
            "candidates": pa.array([[]] * count, lists),
            "clicked": pa.array([[f"{row:02d}"] for row in clicked], lists),
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    features = (
        CategoricalFeature(name="entry", dimension="context", vocabulary="entry"),
        SequenceFeature(name="history", dimension="behaviour", vocabulary="intents", max_length=4),
    )
    schema = FeatureSchema(name="t", features=features, vocabularies={"entry": {name: name for name in TOPICS}})
    path = tmp_path_factory.mktemp("data") / "set"
    with DatasetWriter(path, schema, catalog(), rows_per_shard=100) as writer:
        writer.write("train", sessions(300, 0))
        writer.write("valid", sessions(80, 1))
    return Dataset.open(path)


def config(model_dir: str, **changes: Any) -> HLLMConfig:
    return HLLMConfig(model=model_dir, **{**QUICK, **changes})


def test_nce_by_hand() -> None:
    torch.manual_seed(0)
    users, items = (normalize(torch.randn(count, 8), dim=-1) for count in (3, 5))
    items[4] = items[0]  # the same text twice: no negative of the other
    positive = torch.tensor([0, 2, 4])
    clicked = torch.zeros(3, 5, dtype=torch.bool)
    clicked[[0, 1, 2], positive] = True
    clicked[1, 3] = True  # a second click of session 1
    expected = []
    for row, columns in enumerate(([0, 1, 2, 3], [0, 1, 2, 4], [1, 2, 3, 4])):
        weights = [math.exp(7.0 * float(users[row] @ items[column])) for column in columns]
        expected.append(-math.log(weights[columns.index(int(positive[row]))] / sum(weights)))
    logits = nce_logits(users, items, positive, clicked, torch.tensor(7.0))
    assert float(nce_loss(logits, positive)) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_the_projection_follows_what_all_states_share() -> None:
    """An item token's step moves all states alike: their angles do not change, none becomes a false negative."""
    torch.manual_seed(0)
    states = torch.randn(9, 8)
    projection = ItemProjection(states, 4)
    items = projection(states)
    moved = 3.0 * states + 100.0
    assert (projection(moved) @ projection(moved).T).min() > 0.99
    projection.fit(moved)
    torch.testing.assert_close(projection(moved), items, atol=1e-4, rtol=0)


def test_the_logit_scale_starts_at_clips_and_stays_in_1_to_100() -> None:
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    for value, bound in ((9.0, 100.0), (-3.0, 1.0)):
        scale.log_scale.data.fill_(value)
        found = scale()
        assert found.item() == pytest.approx(bound)
        found.backward()
        assert scale.log_scale.grad is not None  # at a bound it can come back


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    values = [schedule(step / 100, 0.1) for step in range(101)]
    assert values[0] < 0.02
    assert max(values) == pytest.approx(1.0) == values[10]
    assert values[100] == pytest.approx(0.0)


@pytest.mark.parametrize("tune", ["none", "token", "all"])
def test_vectors_of_the_whole_catalogue(dataset: Dataset, model_dir: str, tmp_path: Path, tune: Any) -> None:
    run = build_semantic(dataset, config(model_dir, tune=tune, max_steps=8), tmp_path / "run", progress=False)
    matrix = load_semantic(run, dataset.catalog)
    assert matrix.shape == (12, 32)
    assert matrix.isfinite().all()
    assert len(matrix.unique(dim=0)) == 12
    torch.testing.assert_close(encode_catalog(run, dataset.catalog), matrix, atol=2e-5, rtol=0)


def test_training_lowers_the_validation_loss(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    run = build_semantic(dataset, config(model_dir), tmp_path / "run", progress=False)
    metrics = read_json(run / "metrics.json")
    assert metrics["trained_intents"] == 9
    assert metrics["valid_nce_last"] < math.log(9) - 0.5 < metrics["valid_nce_first"]
    states = load_semantic(run, dataset.catalog)
    trained = states.unflatten(0, (3, 4))[:, :3].flatten(0, 1)
    projection = ItemProjection(torch.zeros(1, 32), 16)
    projection.load_state_dict(
        {
            name.removeprefix("projection."): tensor
            for name, tensor in load_file(run / "item_encoder.safetensors").items()
            if name.startswith("projection.")
        }
    )
    # The item token has moved all states; the projection has moved along.
    torch.testing.assert_close(projection.mean, trained.mean(dim=0), atol=0.01, rtol=0)
    # Never clicked, but of the topic that its text says: nearer to it than to the others.
    with torch.no_grad():
        matrix = projection(states)
    similar = (matrix @ matrix.T)[[3, 7, 11]].unflatten(1, (3, 4))[:, :, :3].mean(dim=2)
    assert similar.argmax(dim=1).tolist() == [0, 1, 2]


def test_only_the_training_split_is_read(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    """Other validation sessions: the same vectors."""
    path = tmp_path / "set"
    with DatasetWriter(path, dataset.schema, dataset.catalog, rows_per_shard=100) as writer:
        writer.write("train", sessions(300, 0))
        writer.write("valid", sessions(50, 7))
    settings = config(model_dir, max_steps=8)
    first, second = (
        load_semantic(build_semantic(data, settings, tmp_path / name, progress=False), dataset.catalog)
        for name, data in (("a", dataset), ("b", Dataset.open(path)))
    )
    assert torch.equal(first, second)


class Killed(BaseException):
    pass


def test_a_killed_run_ends_as_if_undisturbed(
    dataset: Dataset, model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(model_dir, max_steps=14, output="projected")
    expected = load_semantic(build_semantic(dataset, settings, tmp_path / "whole", progress=False), dataset.catalog)
    steps: list[int] = []
    step: Callable[..., float] = NCETrainer.step

    def killed_at_ten(self: NCETrainer, number: int, planned: int) -> float:
        if number == 10 and number not in steps:
            steps.append(number)
            raise Killed
        steps.append(number)
        return step(self, number, planned)

    monkeypatch.setattr(NCETrainer, "step", killed_at_ten)
    with pytest.raises(Killed):
        build_semantic(dataset, settings, tmp_path / "run", progress=False)
    with pytest.raises(ProvenanceError, match="no semantic.json"):
        load_semantic(tmp_path / "run", dataset.catalog)
    resumed = load_semantic(build_semantic(dataset, settings, tmp_path / "run", progress=False), dataset.catalog)
    assert steps == [*range(10), 10, *range(10, 14)]
    assert torch.equal(resumed, expected)
    build_semantic(dataset, settings, tmp_path / "run", progress=False)
    assert len(steps) == 15  # done: nothing was trained again


def test_a_time_limit_shortens_the_schedule(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    settings = config(model_dir, max_steps=100_000, max_seconds=1e-6)
    run = build_semantic(dataset, settings, tmp_path / "run", progress=False)
    assert read_json(run / "metrics.json")["steps"] == 8  # the steps that are timed


def test_intents_beyond_the_limit_are_encoded_but_not_trained(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    settings = config(model_dir, max_train_intents=5, num_negatives=3, max_steps=8)
    run = build_semantic(dataset, settings, tmp_path / "run", progress=False)
    assert read_json(run / "metrics.json")["trained_intents"] == 5
    torch.testing.assert_close(encode_catalog(run, dataset.catalog), load_semantic(run, dataset.catalog))


def test_other_inputs_are_refused(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    run = build_semantic(dataset, config(model_dir, tune="none"), tmp_path / "run", progress=False)
    with pytest.raises(ProvenanceError, match=r"required config.max_text_length 256.*received 9"):
        build_semantic(dataset, config(model_dir, tune="none", max_text_length=9), run, progress=False)
    other = IntentCatalog(("x",), ("parcel",), ("",))
    with pytest.raises(ProvenanceError, match="required text vectors of catalogue"):
        load_semantic(run, other)
    assert encode_catalog(run, other).shape == (1, 32)  # a later catalogue is encoded by the same encoder
    write_json(run / "semantic.json", {**read_json(run / "semantic.json"), "sha256": "0" * 64})
    with pytest.raises(ProvenanceError, match=r"required sha256 0000.*another or damaged file"):
        load_semantic(run, dataset.catalog)


def test_unusable_configurations_are_refused(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output: projected needs a trained projection"):
        config(model_dir, tune="none", output="projected")
    with pytest.raises(ConfigError, match=r"text_fields: required columns .*received 'titel'"):
        build_semantic(dataset, config(model_dir, text_fields=("titel",)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_clicks_is_refused(dataset: Dataset, model_dir: str, tmp_path: Path) -> None:
    path = tmp_path / "set"
    with DatasetWriter(path, dataset.schema, dataset.catalog) as writer:
        writer.write("train", sessions(1, 0))
    with pytest.raises(DataError, match="required clicks on two intents; received 1"):
        build_semantic(Dataset.open(path), config(model_dir), tmp_path / "run", progress=False)


def test_sampling_and_counting_of_sessions(dataset: Dataset) -> None:
    table = sample_sessions(dataset, "train", 120, seed=3)
    assert len(table) == 120
    assert table.equals(sample_sessions(dataset, "train", 120, seed=3))
    assert len(sample_sessions(dataset, "train", 10**6, seed=3)) == 300
    three = pa.table({"clicked": [["02", "00"], ["02"], ["gone"], ["05", "00"]]})
    assert most_clicked(three, dataset.catalog, 2) == [0, 2]
    assert most_clicked(three, dataset.catalog, 9) == [0, 2, 5]
