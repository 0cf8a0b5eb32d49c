"""The look of pages, scoped to the class `rj` so that a notebook keeps its own."""

STYLE = """<style>
.rj { --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff;
  --shade: #f6f8fa; --link: #0550ae; --good: #0b6b3a; --bad: #a40e26;
  color: var(--ink); background: var(--paper); line-height: 1.5; padding: 0 0.75rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.rj h1, .rj h2, .rj h3 { line-height: 1.25; overflow-wrap: anywhere; }
.rj h1 { font-size: 1.5rem; margin: 1rem 0; }
.rj h2 { font-size: 1.2rem; margin: 2rem 0 0.6rem; border-bottom: 1px solid var(--line);
  padding-bottom: 0.25rem; }
.rj h3 { font-size: 1.05rem; margin: 1.2rem 0 0.5rem; }
.rj p, .rj li { max-width: 46rem; }
.rj p.strong { font-weight: 600; }
.rj a { color: var(--link); }
.rj ul, .rj ol { padding-left: 1.3rem; }
.rj li { margin: 0.2rem 0; overflow-wrap: anywhere; }
.rj code { font-size: 0.85em; background: var(--shade); border-radius: 4px;
  padding: 0.1em 0.3em; overflow-wrap: anywhere; }
.rj :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.rj .cards { display: grid; gap: 0.75rem; margin: 1rem 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
.rj .card { border: 1px solid var(--line); border-left: 5px solid var(--soft);
  border-radius: 6px; padding: 0.6rem 0.8rem; background: var(--shade); }
.rj .card.good { border-left-color: var(--good); }
.rj .card.bad { border-left-color: var(--bad); }
.rj .card.bad .value { color: var(--bad); }
.rj .card.good .value { color: var(--good); }
.rj .card dt { color: var(--soft); font-size: 0.85rem; }
.rj .card dd { margin: 0; }
.rj .card .value { display: block; font-size: 1.6rem; font-weight: 650; }
.rj .card .more { color: var(--soft); font-size: 0.85rem; }
.rj .scroll { overflow-x: auto; max-width: 100%; margin: 0.8rem 0; }
.rj table { border-collapse: collapse; font-size: 0.9rem; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.rj caption { text-align: left; color: var(--soft); font-size: 0.85rem;
  padding-bottom: 0.3rem; }
.rj th, .rj td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem;
  text-align: left; vertical-align: top; background: transparent; }
.rj thead th { white-space: nowrap; color: var(--soft); font-weight: 600; }
.rj tbody th { font-weight: 600; min-width: 7rem; }
.rj td { min-width: 3rem; }
.rj td.words { min-width: 16rem; }
.rj thead th.number { text-align: right; }
.rj td.number { text-align: right; white-space: nowrap; }
.rj figure { margin: 1rem 0; }
.rj img { display: block; max-width: max(100%, 34rem); height: auto;
  background: #fff; border-radius: 4px; }
.rj figcaption { color: var(--soft); font-size: 0.85rem; max-width: 46rem; }
.rj details { margin: 0.6rem 0; }
.rj summary { cursor: pointer; color: var(--link); }
@media (prefers-color-scheme: dark) {
  .rj { --ink: #e6edf3; --soft: #9ba5b0; --line: #3a424b; --paper: #0f1318;
    --shade: #181e25; --link: #79b8ff; --good: #56d38b; --bad: #ff8f88; }
}
</style>"""

PRINT = """<style>
html { background: #fff; }
body.rj { margin: 0 auto; max-width: 62rem; padding: 0 1rem 3rem; }
.rj .skip { position: absolute; left: -100rem; top: 0; padding: 0.5rem 1rem;
  background: var(--paper); z-index: 1; }
.rj .skip:focus { left: 0; }
.rj nav { border: 1px solid var(--line); border-radius: 6px; padding: 0.3rem 0.9rem; }
.rj nav ol { columns: 14rem; margin: 0.3rem 0; }
.rj nav li { margin: 0; padding: 0.1rem 0; }
@media (prefers-color-scheme: dark) { html { background: #0f1318; } }
@media (max-width: 30rem) { .rj .card .value { font-size: 1.3rem; }
  .rj .cards { grid-template-columns: 1fr 1fr; gap: 0.5rem; } }
@media print {
  .rj { --ink: #000; --soft: #444; --line: #999; --paper: #fff; --shade: #fff;
    --link: #000; --good: #0b6b3a; --bad: #a40e26; font-size: 10pt; }
  html { background: #fff; }
  .rj nav, .rj .skip { display: none; }
  .rj .scroll { overflow: visible; }
  .rj table { font-size: 8pt; }
  .rj thead th { white-space: normal; }
  .rj figure, .rj tr, .rj .card, .rj .scroll { break-inside: avoid; }
  .rj img { max-width: 100%; max-height: 23cm; width: auto; }
  .rj h2, .rj h3, .rj caption { break-after: avoid; }
  .rj details::details-content { content-visibility: visible; display: block;
    block-size: auto; }
  .rj summary { list-style: none; color: #444; }
}
</style>"""
