"""The page's stylesheet: system fonts, two colour schemes, one column that also fits a phone."""

from eigenloom.report.drawing import GRID, INK, MUTED, PAPER, SERIES

_LIGHT = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER, **{f"s{i}": c for i, c in enumerate(SERIES)}}
_LIGHT |= {"page": "#f6f7f9", "link": "#1d5a9e", "warn": "#9a4a00", "good": "#0b6b5c"}
_DARK = {
    "ink": "#e4e8ee", "muted": "#98a2b0", "grid": "#303742", "paper": "#181c22", "page": "#101317", "link": "#8ebcf0",
    "warn": "#f0a860", "good": "#5ccbb4", "s0": "#6aa7ee", "s1": "#3fc4ab", "s2": "#f09a54", "s3": "#b98be8",
    "s4": "#ee7d8f", "s5": "#cdb558", "s6": "#7fc6ef", "s7": "#a4b56b",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    """Write colours as custom properties."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


CSS = (
    f":root{{color-scheme:light dark;{_variables(_LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}\n"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
header{margin-bottom:2rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.25;margin:3rem 0 .6rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p,li{max-width:46rem;text-wrap:pretty}
.lead{color:var(--muted);margin:0}
.note,figcaption{color:var(--muted);font-size:.875rem;line-height:1.5}
a{color:var(--link);text-underline-offset:.15em}
nav{font-size:.875rem;margin-top:.9rem;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}
code{font:.92em ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
.topics{columns:2 24rem;column-gap:2.5rem;font-size:.9rem;line-height:1.5}
.topics h3{break-after:avoid;font-size:1.05rem;margin:1.2rem 0 .2rem}
.topics h3:first-child{margin-top:0}
.findings{list-style:none;margin:0;padding:0}
.findings li{padding:.45rem 0 .45rem 1.4rem;position:relative;break-inside:avoid}
.findings li+li{border-top:1px solid var(--grid)}
.findings li::before{content:"";position:absolute;left:.15rem;top:.9rem;
 width:.5rem;height:.5rem;border-radius:50%;background:var(--muted)}
.findings .good::before{background:var(--good)}
.findings .warning::before{background:var(--warn);border-radius:0;transform:rotate(45deg)}
.findings small a{white-space:nowrap}
.card,figure{background:var(--paper);border:1px solid var(--grid);border-radius:8px;margin:1rem 0 1.8rem}
.scroll{overflow-x:auto}
.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
figure .scroll{padding:1rem 1rem 0}
figure svg{display:block;width:100%;min-width:38rem;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{padding:.6rem 1rem 1rem;max-width:52rem}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums;line-height:1.35}
.card .note{padding:0 .9rem;max-width:52rem}
th,td{padding:.42rem .7rem;text-align:right;vertical-align:top;white-space:nowrap}
th{font-weight:600}
th[scope=row],td.text,th.text{text-align:left}
thead th{border-bottom:1px solid var(--muted);vertical-align:bottom}
thead tr:first-child:not(:last-child) th{border-bottom:0;padding-bottom:0}
tbody tr+tr>*{border-top:1px solid var(--grid)}
tbody+tbody tr:first-child>*{border-top:1px solid var(--muted)}
.start{border-left:1px solid var(--grid)}
th.chosen,td.chosen{background:color-mix(in srgb,var(--link) 7%,transparent)}
td a{color:inherit;text-decoration:none;display:block}
td a:hover b,td a:focus-visible b{text-decoration:underline}
td b{font-weight:600}
.floor{display:block;color:var(--muted);font-size:.8rem;font-weight:400}
.below b{color:var(--warn)}
tr.role-floor>*{color:var(--muted);font-style:italic;font-weight:400}
.dot{display:inline-block;width:.6rem;height:.6rem;border-radius:50%;margin-right:.45rem}
td.wide{white-space:normal;min-width:14rem;text-align:left}
.facts th{white-space:normal}
.results tbody th{font-weight:400}
.results .group th{font-weight:600;text-align:left;padding-top:.7rem}
.results .group+tr>*{border-top:0}
.results .group th{padding-bottom:.1rem}
.group .dot{position:sticky;left:.7rem}
th button{all:unset;cursor:pointer;font:inherit}
th button:focus-visible{outline:2px solid var(--link);outline-offset:2px}
th button::after{content:" ↕";color:var(--muted);font-weight:400;opacity:.55}
th[aria-sort=ascending] button::after{content:" ↑";opacity:1}
th[aria-sort=descending] button::after{content:" ↓";opacity:1}
.filter{display:block;font-size:.875rem;color:var(--muted);margin:.6rem 0 -.4rem}
.filter input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--grid);border-radius:6px;
 padding:.25rem .5rem;width:14rem;max-width:60vw}
tr[hidden]{display:none}
.wide-table th,.wide-table td{padding:.32rem .5rem}
tr.role-published>*{color:var(--muted);font-weight:400}
.gallery{padding:.7rem .9rem;margin:.5rem 0}
.gallery summary .floor{display:inline;margin-left:.6rem}
.methods{display:flex;flex-wrap:wrap;gap:.4rem 1.2rem}
.methods>div{width:268px}
.tiles{display:flex;gap:3px}
.methods p{margin:.6rem 0 .2rem;font-size:.875rem;line-height:1.35}
.tile{display:inline-block;position:relative;width:64px;height:64px;image-rendering:pixelated;
 border-radius:3px;overflow:hidden}
.tile i{position:absolute;inset:0;image-rendering:pixelated;opacity:.8;transition:opacity .15s}
.tile:hover i,.tile:focus i{opacity:0}
.tile:focus-visible{outline:2px solid var(--link);outline-offset:1px}
details{margin:1rem 0}
summary{cursor:pointer;font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;font-size:.9375rem;margin:.5rem 0}
dt{font-weight:600}
dd{margin:0;max-width:44rem}
@media (max-width:40rem){
 main{padding:1.4rem 1rem 3rem}
 h1{font-size:1.5rem}
 dl{grid-template-columns:1fr;gap:0}
 dd{margin-bottom:.6rem}
 .results th[scope=row]{position:sticky;left:0;background:var(--paper);
  max-width:8.5rem;white-space:normal;overflow-wrap:anywhere}
 th,td{padding:.4rem .5rem}
}
@media print{body{background:#fff}.scroll{overflow:visible}details>*{display:block}}
"""
)
