"""How fast contexts become token ids, beside the whole prompt's text through the transformers tokenizer.

    python -m rgalign.bench.tokenizer_work [--batches 1 16 256]    rows: bench/results/tokenizer.jsonl

The baseline writes the prompt as text and tokenises all of it, as a service does that knows no constant prefix. Its ids
are compared before anything is timed: they may differ from ours only where a slot's first or last characters would have
merged with their neighbours', and both must read back as the same text.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rgalign.bench.rows import RESULTS, append, row, spread
from rgalign.bench.scoring import timed
from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.pretrained import load_tokenizer

Session = Mapping[str, Any]
SIMULATED = 2_000

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--template", default="paper")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16, 256), help="contexts a call")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing a cell")
    parser.add_argument("--out", default="tokenizer.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "simulated"
        simulate(SimulatorConfig(num_sessions=SIMULATED), path, workers=1, progress=False)
        dataset = Dataset.open(path)
        tokenizer = load_tokenizer(arguments.model)
        encoder = PromptEncoder(tokenizer, dataset.schema, dataset.catalog, template=arguments.template)
        sessions = dataset.table("train", dataset.schema.columns).to_pylist()
    require_same_text(encoder, tokenizer, sessions[:64])
    for batch in arguments.batches:
        rows = measure(encoder, tokenizer, sessions, batch, arguments)
        for each in rows:
            console.print(f"B {batch} {each['variant']}:", each["call_ms"])
        console.print(f"appended to {append(arguments.out, rows)}")


def variants(
    encoder: PromptEncoder, tokenizer: Any, sessions: Sequence[Session], batch: int
) -> dict[str, Callable[[], Any]]:
    """Each call takes the next sessions, every variant the same ones."""
    ways: dict[str, Callable[[Sequence[Session]], Any]] = {
        "rgalign, slots only": encoder.encode_many,
        "rgalign, one by one": lambda some: [encoder.encode(session) for session in some],
        "transformers, whole prompts": lambda some: whole_prompts(encoder, tokenizer, some),
    }
    batches = [sessions[at : at + batch] for at in range(0, len(sessions) - batch + 1, batch)]

    def cycling(way: Callable[[Sequence[Session]], Any]) -> Callable[[], Any]:
        coming: Iterator[Sequence[Session]] = itertools.cycle(batches)
        return lambda: way(next(coming))

    return {name: cycling(way) for name, way in ways.items()}


def whole_prompts(encoder: PromptEncoder, tokenizer: Any, sessions: Sequence[Session]) -> list[list[int]]:
    chat, words = encoder.chat_format, encoder.template
    before = chat.opening + words.system + chat.middle + words.before
    texts = [before + slots_text(encoder, session) + words.after + chat.closing for session in sessions]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def slots_text(encoder: PromptEncoder, session: Session) -> str:
    """The slots as a service writes them that does not shorten: none of these is too long."""
    return ", ".join(slot.text for slot in encoder.schema.slots(session, include_pii=False))


def require_same_text(encoder: PromptEncoder, tokenizer: Any, sessions: Sequence[Session]) -> None:
    """Raises AssertionError where a prompt of ours reads otherwise than the baseline's."""
    theirs = whole_prompts(encoder, tokenizer, sessions)
    for session, ids, slots in zip(sessions, theirs, encoder.encode_many(sessions), strict=True):
        ours = tokenizer.decode(encoder.full_ids(slots))
        if ours != tokenizer.decode(ids):
            raise AssertionError(f"a prompt of {session.get('session_id')} reads otherwise: {ours!r}")


def measure(
    encoder: PromptEncoder, tokenizer: Any, sessions: Sequence[Session], batch: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    lengths = [len(ids) for ids in whole_prompts(encoder, tokenizer, sessions[:256])]
    timings = timed(variants(encoder, tokenizer, sessions, batch), arguments.seconds)
    return [
        row(
            "tokenizer",
            variant=name,
            model=arguments.model,
            template=arguments.template,
            B=batch,
            tokens_per_prompt=round(sum(lengths) / len(lengths), 1),
            calls=len(seconds),
            call_ms=spread([each * 1e3 for each in seconds]),
            prompts_per_s=spread([batch / each for each in seconds], 1),
        )
        for name, seconds in timings.items()
    ]


if __name__ == "__main__":
    main()
