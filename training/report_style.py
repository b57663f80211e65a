"""The report page's style sheet."""

CSS = """
:root { --text: #1f2430; --muted: #667085; --line: #e4e7ec; --soft: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 0 0 14px; letter-spacing: -0.005em; }
h3 { font-size: 15px; margin: 0; font-weight: 600; }
h4 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
section { margin-top: 44px; }
.eyebrow { margin: 0 0 4px; color: var(--muted); font-size: 13px; letter-spacing: 0.06em; text-transform: uppercase; }
.facts { margin: 8px 0 0; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 16px; margin-top: 26px; }
.card { border: 1px solid var(--line); border-top: 4px solid; border-radius: 8px; padding: 16px 18px; }
.card p { margin: 0; }
.card .big { font-size: 34px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card .interval { margin-bottom: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 9px 12px; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child, th.title, td.title, tbody th { text-align: left; font-weight: 500; }
thead th { color: var(--muted); font-size: 13px; font-weight: 600; border-bottom: 2px solid var(--line); }
table.wide th, table.wide td { text-align: left; }
table.small { font-size: 13px; }
table.small th, table.small td { padding: 4px 8px; }
table.small td.title, table.small th:nth-child(2) { text-align: left; white-space: normal; }
.mean, .delta { font-weight: 600; }
.interval, .note, figcaption { color: var(--muted); font-size: 13px; }
.note { margin: 10px 0 0; max-width: 86ch; }
.note .mean { font-weight: 500; color: var(--text); }
.verdict { display: inline-block; border-radius: 10px; padding: 0 9px; margin-right: 4px; font-size: 12px;
  line-height: 20px; background: #eef0f4; color: #4b5563; }
.verdict.better { background: #ddf3e6; color: #0b6b3a; }
.verdict.worse { background: #fce4e4; color: #a11d1d; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.legend { margin: 0 0 6px; font-size: 13px; }
.legend span { margin-right: 20px; }
.plots { display: flex; flex-wrap: wrap; gap: 28px; }
figure { margin: 0; }
figure table { margin-top: 8px; }
figcaption { margin-bottom: 6px; font-weight: 600; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
details { margin-top: 12px; }
summary { cursor: pointer; color: #0b63c5; font-size: 14px; }
article { border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; margin-top: 16px;
  break-inside: avoid; }
.wanted { margin: 2px 0 10px; }
.slots { list-style: none; margin: 0 0 14px; padding: 10px 14px; background: var(--soft); border-radius: 6px;
  font-size: 13px; columns: 2; column-gap: 28px; }
.slots li { break-inside: avoid; padding: 1px 0; overflow-wrap: anywhere; }
.dimension { color: var(--muted); display: inline-block; min-width: 74px; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px 28px; }
.hit { color: #0b6b3a; }
@media print { main { max-width: none; padding: 0; } section { break-inside: avoid; } }
"""
