"""What the page shows, as HTML. Everything that comes of data or of a person is escaped; there is no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rgalign.playground.shown import Comparison, Move, Near, Prompt, Segment, Shown
from rgalign.recommender.answer import RankedIntent

CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

LEGEND = (
    '<p class="pg-legend"><span><i class="pg-swatch pg-user"></i>user part ω·û·î</span>'
    '<span><i class="pg-swatch pg-query"></i>query part (1 − ω)·q̂·î</span>'
    '<span><i class="pg-swatch pg-mark"></i>score, their sum</span></p>'
)


def error_panel(error: Exception) -> str:
    name = escape(type(error).__name__)
    return f'<div class="pg pg-error" role="alert"><b>{name}</b><span>{escape(str(error))}</span></div>'


def state_panel(shown: Shown, bundle: str) -> str:
    """Degraded or not, shown or not, how long it took, what answered."""
    answer = shown.answer
    if answer.degraded is not None:
        mode = f'<span class="pg-chip pg-warn">degraded: {escape(answer.degraded)}, ω = 1</span>'
    else:
        mode = f'<span class="pg-chip">ω = {shown.omega:.2f}</span>'
    if not answer.show:
        mode += '<span class="pg-chip pg-warn">below the threshold: a service would show nothing</span>'
    times = answer.timings
    parts = f"tokenise {times.tokenise_ms:.1f}, queue {times.queue_ms:.1f}, reason {times.reason_ms:.1f}"
    facts = f"{times.total_ms:.1f} ms ({parts}, rank {times.rank_ms:.1f})"
    named = f"bundle {bundle[:12]}, index generation {answer.generation}"
    return f'<div class="pg pg-state">{mode}<span>{facts}</span><span>{named}</span></div>'


def prompt_panel(prompt: Prompt | None, tower_only: Sequence[str]) -> str:
    """The prompt's text, slots marked by dimension; those that the other context does not have are outlined."""
    if prompt is None:
        return _panel('<p class="pg-note">This bundle has no reasoner: no prompt is written.</p>' + _tower(tower_only))
    prefix, slots, suffix = prompt.tokens
    counts = f"{prefix} prefix + {slots} slot + {suffix} suffix tokens"
    keys = "".join(
        f'<span><i class="pg-swatch pg-{name}"></i>{name}</span>' for name in ("profile", "behaviour", "context")
    )
    text = "".join(map(_segment, prompt.segments))
    legend = f'<p class="pg-legend">{keys}<span class="pg-muted">{counts}</span></p>'
    return _panel(f'{legend}<pre class="pg-prompt">{text}</pre>{_tower(tower_only)}')


def top_panel(shown: Shown, scale: tuple[float, float]) -> str:
    """The k best intents with stacked bars."""
    rows = "".join(_ranked(rank, intent, scale) for rank, intent in enumerate(shown.top, start=1))
    return _panel(f'{LEGEND}<ol class="pg-bars">{rows}</ol>')


def nearest_panel(nearest: Sequence[Near], no_query: str) -> str:
    """The intents nearest to the latent query."""
    if no_query:
        return _panel(f'<p class="pg-note">{escape(no_query)}</p>')
    scale = span([(each.cosine, 0.0) for each in nearest])
    rows = "".join(
        f'<li><p class="pg-title">{_title(each.title, each.id)}<b>{each.cosine:.3f}</b></p>'
        f'<div class="pg-bar">{_stacked([("query", each.cosine)], scale)}</div></li>'
        for each in nearest
    )
    legend = '<p class="pg-legend"><span><i class="pg-swatch pg-query"></i>cosine q̂·î</span></p>'
    return _panel(f'{legend}<ol class="pg-bars">{rows}</ol>')


def comparison_panel(comparison: Comparison | None) -> str:
    """Ranks, scores and parts of the picked and of the edited context."""
    if comparison is None or comparison.nothing:
        return _panel(
            '<p class="pg-note">Nothing differs from the picked context. Change a feature or edit the JSON.</p>'
        )
    slots = "".join(f'<li class="pg-gone">{escape(text)}</li>' for text in comparison.gone)
    slots += "".join(f'<li class="pg-come">{escape(text)}</li>' for text in comparison.come)
    note = '<p class="pg-note">The prompt is the same: only the user tower reads this change.</p>'
    listed = f'<ul class="pg-slots">{slots}</ul>' if slots else note
    head = "<tr><th>intent</th><th>rank</th><th>score</th><th>user</th><th>query</th><th>probability</th></tr>"
    rows = "".join(map(_move, comparison.moves))
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return _panel(listed + table)


def written_panel(texts: Sequence[tuple[str, str]], note: str) -> str:
    """(of which context, the generated query) and how it was made."""
    quotes = "".join(
        f'<p class="pg-quote"><span>{escape(name)}</span>{escape(text) or "<i>nothing</i>"}</p>' for name, text in texts
    )
    return _panel(f'{quotes}<p class="pg-note">{escape(note)}</p>')


def reason_panel(reason: str) -> str:
    return _panel(f'<p class="pg-note">{escape(reason)}</p>')


def span(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(lowest, highest) end of the stacked bars, zero included."""
    low, high = 0.0, 0.0
    for pair in parts:
        low = min(low, sum(part for part in pair if part < 0))
        high = max(high, sum(part for part in pair if part > 0))
    return (low, high) if high > low else (0.0, 1.0)


def top_span(*shown: Shown) -> tuple[float, float]:
    """One scale for the tops of all that stand side by side."""
    return span((intent.user_part, intent.query_part) for each in shown for intent in each.top)


def _panel(content: str) -> str:
    return f'<div class="pg">{content}</div>'


def _segment(segment: Segment) -> str:
    text = escape(segment.text)
    if segment.kind != "slot":
        return f'<span class="pg-{segment.kind}">{text}</span>'
    changed = " pg-changed" if segment.changed else ""
    return f'<mark class="pg-{segment.dimension}{changed}" title="{escape(segment.name)}">{text}</mark>'


def _tower(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f'<p class="pg-note">Not in the prompt, read by the user tower: {escape(", ".join(names))}</p>'


def _title(title: str, intent: str) -> str:
    return f"<span>{escape(title)} <small>{escape(intent)}</small></span>"


def _ranked(rank: int, intent: RankedIntent, scale: tuple[float, float]) -> str:
    parts = [("user", intent.user_part), ("query", intent.query_part)]
    sum_text = f"{intent.user_part:.3f} {_signed(intent.query_part)}"
    return (
        f'<li><p class="pg-title"><em>{rank}</em>{_title(intent.title, intent.id)}<b>{intent.score:.3f}</b></p>'
        f'<div class="pg-bar" title="{sum_text}">{_stacked(parts, scale)}{_mark(intent.score, scale)}</div>'
        f'<p class="pg-parts"><span>{sum_text}</span><span>probability {intent.probability:.1%}</span></p></li>'
    )


def _stacked(parts: Sequence[tuple[str, float]], scale: tuple[float, float]) -> str:
    """Positive parts to the right of zero, negative ones to the left, each after the one before."""
    low, high = scale
    ends = {True: 0.0, False: 0.0}
    bars = ""
    for name, part in parts:
        begin = ends[part >= 0]
        ends[part >= 0] = end = begin + part
        left, width = (min(begin, end) - low) / (high - low), abs(part) / (high - low)
        bars += f'<i class="pg-{name}" style="left:{left:.2%};width:{width:.2%}"></i>'
    if low < 0:
        bars += f'<i class="pg-zero" style="left:{-low / (high - low):.2%}"></i>'
    return bars


def _mark(score: float, scale: tuple[float, float]) -> str:
    return f'<i class="pg-mark" style="left:{(score - scale[0]) / (scale[1] - scale[0]):.2%}"></i>'


def _move(move: Move) -> str:
    steps = move.rank_before - move.rank_after
    arrow = f"▲{steps}" if steps > 0 else f"▼{-steps}" if steps < 0 else "="
    colour = "pg-up" if steps > 0 else "pg-down" if steps < 0 else "pg-muted"
    before, after = move.before, move.after
    cells = "".join(
        f'<td data-name="{name}">{new:.3f} <small>{_signed(new - old)}</small></td>'
        for name, old, new in (
            ("score", before.score, after.score),
            ("user", before.user_part, after.user_part),
            ("query", before.query_part, after.query_part),
        )
    )
    return (
        f"<tr><th>{escape(move.title)}</th>"
        f'<td data-name="rank">{move.rank_before} → {move.rank_after} '
        f'<small class="{colour}">{arrow}</small></td>{cells}'
        f'<td data-name="probability">{before.probability:.1%} → {after.probability:.1%}</td></tr>'
    )


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.3f}"
