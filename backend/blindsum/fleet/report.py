"""The demo's report: a PNG, and one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from .charts import CHARTS, DARK, LIGHT, Chart, draw_png, draw_svg
from .figures import DemoFigures, RoundFigures, kilobytes, percent

__all__ = ["STYLE", "write_report"]


def write_report(path_html: Path, path_png: Path, figures: DemoFigures) -> None:
    """Write both files; the HTML holds charts of its own for light and dark pages. Raises "fleet-package-missing"."""
    draw_png(figures, path_png)
    path_html.write_text(_page(figures), encoding="utf-8")


def _page(figures: DemoFigures) -> str:
    first = figures.rounds[0]
    title = f"blindsum demo: {first.enrolled} devices, {figures.parties} parties"
    intro = (
        f"{first.enrolled} devices, each with its own part of {figures.data}, taught one model together. Every device sent its "
        f"update behind masks; {figures.parties} independent parties took the masks off the sum, and off nothing else."
    )
    verify = f"blindsum verify {figures.transcript}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="lead">{escape(intro)}</p>
<section class="tiles">{_tiles(figures)}</section>
<section class="charts">{"".join(_figure(chart, figures) for chart in CHARTS)}</section>
<h2>Result</h2>
{_table(("what", "figure"), figures.as_table(), "pairs")}
<h2>Round by round</h2>
{_table(_ROUND_HEAD, [_round_row(each) for each in figures.rounds], "rounds")}
<h2>What each role saw</h2>
{_table(("role", "held", "could learn"), _roles(figures), "roles")}
<div class="halves">
<section><h2>What was protected</h2>{_list(_protected(figures))}</section>
<section><h2>What was not</h2>{_list(_unprotected(figures))}</section>
</div>
<h2>Check it yourself</h2>
<p>The transcript of the last round holds every signed message that its sum rests on. This recomputes the sum from it, and names
whoever signed something false:</p>
<pre><code>{escape(verify)}</code></pre>
</main>
</body>
</html>
"""


# -- parts ------------------------------------------------------------------------------------------------------------


def _tiles(figures: DemoFigures) -> str:
    devices, failed = figures.devices, len(figures.failed)
    exact = "exact" if figures.sum_exact else "NOT EQUAL"
    sound = figures.sum_exact and figures.transcripts_valid
    transcripts = "; all transcripts verified" if figures.transcripts_valid else "; NOT ALL TRANSCRIPTS ARE VALID"
    survived = f"{len(figures.rounds)} of {len(figures.rounds) + failed}"
    restarted = ", as was a party's kill and restart" if figures.party_restarted else ""
    tiles = (
        (exact, f"secure sum against plain sum of the same vectors: {figures.verdict()}{transcripts}", sound),
        (
            percent(figures.secure),
            f"accuracy of the secure model; plain FedAvg on the same updates {percent(figures.plain)}",
            True,
        ),
        (
            f"{survived} rounds",
            f"gave a sum; {devices['dropped']} dropouts on the way were survived{restarted}",
            not failed,
        ),
        (
            f"{figures.upload_bytes_per_parameter:.2f} B",
            f"a parameter in the masked vector; {kilobytes(figures.upload_bytes)} a device and round in all",
            True,
        ),
        (f"{figures.device_mask_ms:.1f} ms", "to mask an update on a device", True),
    )
    return "".join(
        f'<div class="tile{"" if good else " bad"}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text, good in tiles
    )


def _figure(chart: Chart, figures: DemoFigures) -> str:
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(draw_svg(chart, figures, theme)).decode()
        for theme in (LIGHT, DARK)
    )
    caption = escape(chart.describe(figures))
    return (
        f'<figure><h2>{escape(chart.title)}</h2><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], kind: str) -> str:
    """The first cell of a row is its heading; on a phone the cells carry the column's name themselves."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f'<td data-head="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(head[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(sentences: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


_ROUND_HEAD: Final = (
    "round",
    "joined",
    "uploaded",
    "in the sum",
    "sum",
    "secure",
    "plain",
    "examples",
    "seconds",
    "dropped",
)


def _round_row(each: RoundFigures) -> tuple[str, ...]:
    return (
        str(each.round),
        f"{each.joined} of {each.enrolled}",
        str(each.uploaded),
        str(each.survivors),
        "exact" if each.exact else "NOT EQUAL",
        percent(each.accuracy_secure),
        percent(each.accuracy_plain),
        f"{each.weight:,}",
        f"{each.seconds:.1f}",
        ", ".join(f"{count} {phase}" for phase, count in each.missing.items()) or "none",
    )


# -- words ------------------------------------------------------------------------------------------------------------


def _roles(figures: DemoFigures) -> list[tuple[str, ...]]:
    few = _malicious(figures)
    band = "one party" if few == 1 else f"up to {few} parties together"
    return [
        (
            "a device",
            "its own examples, its own mask seeds, the public keys of the round's devices, the published sum and model",
            "what the sum says of the others as a group; no other device's update",
        ),
        (
            "the broker",
            "every message that passed: masked vectors, sealed seeds, signed lists, the published sums and models",
            "who took part, when, and how much each sent; no update: without the masks a vector is random numbers",
        ),
        (
            "the coordinator",
            "every masked vector, and the sums of masks that the parties opened",
            "the exact sum over the devices that finished, and who dropped out; no single update",
        ),
        (
            band,
            "for every device, some of the seeds of its masks, but never all",
            "who took part, and the published sum; no update, not even in league with coordinator and broker",
        ),
        (
            "for comparison, the server of plain FedAvg",
            "every update in the clear",
            "every update, from which training examples can often be reconstructed",
        ),
    ]


def _protected(figures: DemoFigures) -> tuple[str, ...]:
    few = _malicious(figures)
    kept = (
        "The examples. They never left their device; only updates of the model did.",
        "Each device's update. It was sent behind masks of two kinds, its own and ones it shares with other devices, and only the "
        "sum over all the devices that finished was ever opened.",
        "Devices that dropped out. What they had sent before stays masked for ever, since nobody opens a mask of a device outside "
        "the sum.",
        f"All this against the broker, the coordinator and {few} of the {figures.parties} parties acting together. Each sum needed "
        f"the votes of {2 * few + 1} parties on one set of devices, and a party votes once a round, even if it is killed and "
        "restarted in between.",
    )
    return (*kept, _RIGHT) if figures.sum_exact and figures.transcripts_valid else kept


_RIGHT: Final = (
    "The result. The opened sum is the true one to the last bit; whoever is given the transcript can recompute it."
)


def _unprotected(figures: DemoFigures) -> tuple[str, ...]:
    few = _malicious(figures)
    return (
        "What the sum and the model tell by themselves. They are public here and say something about the group, in small groups "
        "also about its members. Noise against that (differential privacy) was not part of this run.",
        f"Anything against {few + 1} or more of the {figures.parties} parties in league with the coordinator. They should "
        "belong to organisations that would not collude.",
        "Who took part, when, and how much was sent.",
        "The model against devices that lie. A masked update cannot be looked at, only kept short.",
        "This run itself: all roles ran on one machine, and the devices left copies of what they were about to mask, so that this "
        "report could compare the secure sum with the plain one. Outside the demo there are no such copies.",
    )


def _malicious(figures: DemoFigures) -> int:
    """f of the 3f + 1 parties."""
    return (figures.parties - 1) // 3


STYLE: Final = """
:root{--page:#fff;--ink:#1c2430;--soft:#5a6573;--line:#dfe3e8;--tile:#f5f7f9;--good:#0072b2;--bad:#b3261e}
@media(prefers-color-scheme:dark){
:root{--page:#161b22;--ink:#e6e9ee;--soft:#9aa5b3;--line:#30363f;--tile:#1e252e;--good:#56b4e9;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:2rem 0 .6rem}
p{max-width:46rem}
.lead{color:var(--soft);margin:0 0 1.25rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.75rem}
.tile{background:var(--tile);border-radius:.6rem;padding:.8rem 1rem;border-left:4px solid var(--good)}
.tile.bad{border-color:var(--bad)}
.tile b{display:block;font-size:1.45rem;line-height:1.2;color:var(--good)}
.tile.bad b{color:var(--bad)}
.tile span{font-size:.86rem;color:var(--soft);display:block;margin-top:.25rem;line-height:1.4}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:0 1.5rem}
figure{margin:0}
img{width:100%;max-width:34rem;height:auto;display:block}
figcaption{font-size:.86rem;color:var(--soft);max-width:34rem;margin-top:.4rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.4rem 1.1rem .4rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:500;font-size:.84rem;white-space:nowrap}
tbody th{font-weight:600}
.rounds td,.rounds th{white-space:nowrap}
.roles th{width:20%}
.roles td{width:40%}
.halves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:0 2.5rem}
ul{padding-left:1.1rem;margin:0}
li{margin-bottom:.5rem}
@media(max-width:40rem){
.roles thead{display:none}
.roles th,.roles td{display:block;width:auto;border:0;padding:.15rem 0}
.roles tr{display:block;border-bottom:1px solid var(--line);padding:.5rem 0}
.roles td::before{content:attr(data-head) ": ";color:var(--soft)}}
pre{background:var(--tile);border-radius:.6rem;padding:.8rem 1rem;overflow-x:auto}
"""
