"""The page of a review: one HTML file or a few, which load nothing from anywhere. Pictures are inside them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.quarantine import EXPLAINED, Code

CARDS_A_PAGE = 40
SHORT_KEY = 12  # digits of a key that are shown and are enough to name it


@dataclass(frozen=True, kw_only=True)
class Card:
    """One file on the page.

    Attributes:
        key: what the file is approved by.
        code: HELD, another code if it could not be prepared, "" if it is taken.
        held: whether it waits for a person.
        frames: uint8 before (h,w,3) with what was blanked framed, and after (h,w); none without a picture.
    """

    key: str
    code: str
    held: bool
    modality: str = ""
    rows: int = 0
    columns: int = 0
    blanked: int = 0
    frames: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The head of the page. SENSITIVE, as every count of a hospital's images.

    Attributes:
        held: images that wait.
        shown: of those, in this review.
        approvable: of those, with a picture.
        approved: images that were approved before.
        blanked: images that are taken and had text blanked.
        blanked_shown: of those, in this review.
    """

    held: int
    shown: int
    approvable: int
    approved: int
    blanked: int
    blanked_shown: int


def render_pages(cards: Sequence[Card], counts: Counts, *, site: str, folder: str) -> Iterator[tuple[str, str]]:
    """Yields (file name, HTML) of each page, `index.html` first; held images come before the sample.

    Args:
        cards: what to show.
        counts: what stands at the top.
        site: name of the site file, for the commands.
        folder: where the pages go, for the words on deleting them.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_PAGE)
    parts = [cards[start : start + CARDS_A_PAGE] for start in range(0, len(cards), CARDS_A_PAGE)] or [[]]
    names = ["index.html", *(f"page-{number}.html" for number in range(2, len(parts) + 1))]
    for name, part in zip(names, parts, strict=True):
        shown = [_fields(card) for card in part]
        yield (
            name,
            template.render(
                style=_STYLE,
                counts=counts,
                site=site,
                folder=folder,
                digits=SHORT_KEY,
                names=names,
                name=name,
                held=[card for card in shown if card["held"]],
                taken=[card for card in shown if not card["held"]],
            ),
        )


def _fields(card: Card) -> dict[str, object]:
    return {
        "key": card.key[:SHORT_KEY],
        "held": card.held,
        "code": card.code,
        "why": EXPLAINED[Code(card.code)] if card.code else "",
        "modality": card.modality,
        "size": f"{card.columns} × {card.rows}" if card.rows else "",
        "blanked": card.blanked,
        "frames": [(_picture(before), _picture(after)) for before, after in card.frames],
    }


def _picture(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_STYLE = """
:root { --ink:#1f2a37; --soft:#5b6676; --line:#e3e8ee; --paper:#fff; --ground:#f4f6f8; --deep:#0f766e; --warm:#b45309; }
* { box-sizing: border-box; }
html { background: var(--ground); }
body { margin: 0 auto; max-width: 1180px; padding: 0 28px 64px; color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
header { padding: 36px 0 8px; } h1 { font-size: 30px; margin: 0 0 8px; } h2 { font-size: 20px; margin: 32px 0 6px; }
p { margin: 8px 0; max-width: 92ch; } .soft { color: var(--soft); font-size: 14px; }
.warning { background: #fdf6ec; border-left: 4px solid var(--warm); border-radius: 8px; padding: 10px 16px; }
.counts { display: flex; flex-wrap: wrap; gap: 10px 40px; margin: 18px 0; padding: 0; }
.counts div { min-width: 120px; } .counts b { display: block; font-size: 30px; color: var(--deep); }
.counts span { color: var(--soft); font-size: 13.5px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
        margin: 14px 0; }
.card header { padding: 0; display: flex; flex-wrap: wrap; gap: 4px 22px; align-items: baseline; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin: 10px 0 0; }
.pair figure { margin: 0; } .pair figcaption { font-size: 13px; color: var(--soft); }
.pair img { display: block; width: 100%; height: auto; border-radius: 6px; background: #000; }
.tag { border: 1px solid var(--line); border-radius: 99px; padding: 1px 10px; font-size: 13px; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 14px; }
pre { background: #14202b; color: #e4edf3; border-radius: 10px; padding: 12px 16px; overflow-x: auto; margin: 8px 0; }
.stop { color: var(--warm); } nav a { margin-right: 12px; }
ol li { margin: 5px 0; max-width: 92ch; }
@media (max-width: 700px) { .pair { grid-template-columns: 1fr; } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Images to review</title><style>{{ style }}</style></head><body>
{% macro pictures(card) %}
  {% for before, after in card.frames %}
  <div class="pair">
    <figure><img src="{{ before }}" alt="before"><figcaption>before{% if card.frames | length > 1 %}, frame
      {{ loop.index }} of {{ card.frames | length }}{% endif %}; red: what is blanked</figcaption></figure>
    <figure><img src="{{ after }}" alt="after"><figcaption>after: what training would see, before it is made
      smaller</figcaption></figure>
  </div>
  {% endfor %}
{% endmacro %}
<header>
  <h1>Images to review</h1>
  <p class="warning"><b>This page shows patients’ data.</b> The pictures on the left are the originals, with names if
  there are names in them. Look at it on this machine, send it to nobody, and delete <code>{{ folder }}</code> when you
  are done.</p>
  <div class="counts">
    <div><b>{{ counts.held }}</b><span>wait for a decision</span></div>
    <div><b>{{ counts.shown }}</b><span>of them shown here</span></div>
    <div><b>{{ counts.shown - counts.approvable }}</b><span>of them cannot be approved</span></div>
    <div><b>{{ counts.approved }}</b><span>approved before</span></div>
    <div><b>{{ counts.blanked }}</b><span>used, with text blanked ({{ counts.blanked_shown }} shown)</span></div>
  </div>
  {% if names | length > 1 %}<nav>Pages:
    {% for other in names %}<a{% if other != name %} href="{{ other }}"{% endif %}>{{ loop.index }}</a>{% endfor %}
  </nav>{% endif %}
</header>
{% if name == "index.html" %}
<h2>What to do</h2>
<p>Ultrasound, screen captures and similar images often carry a name, a date or a hospital in the picture itself. They
are not used (code <code>HELD</code>) until somebody of your hospital has looked at each of them here. Nor is an image
of which more than a quarter was blanked as text: look whether what is left still shows the patient's body.</p>
<ol>
  <li>Look at the picture on the <b>right</b>. Can you still read anything about the patient, the staff, the time or the
    place? A few letters of a name are enough to say no.</li>
  <li>If not, approve it by the key above it. The first {{ digits }} digits are enough; several at once are possible:
    <pre>ghostnet site review {{ site }} --approve KEY --approve KEY</pre></li>
  <li>If <b>every</b> image that is shown here is clean, approve them together:
    <pre>ghostnet site review {{ site }} --approve-all</pre></li>
  <li>Leave the others alone: what is not approved is never used. Changed your mind?
    <pre>ghostnet site review {{ site }} --revoke KEY</pre></li>
  <li>The next <code>ghostnet site check</code> shows the new numbers. A file that changes is held again.</li>
</ol>
{% if counts.held > counts.shown %}<p class="stop">{{ counts.held - counts.shown }} more wait: decide about these, then
run the review again.</p>{% endif %}
{% endif %}
{% if held %}
<h2>Waiting for a decision</h2>
{% for card in held %}
<article class="card" id="{{ card.key }}"><header><code>{{ card.key }}</code>
  {% if card.frames %}<span class="tag">{{ card.modality }}</span><span class="soft">{{ card.size }} px,
    {{ card.blanked }} rectangle(s) blanked as text</span>
  {% else %}<span class="tag">{{ card.code }}</span><span class="stop">cannot be approved: {{ card.why }}</span>
  {% endif %}</header>
  {{ pictures(card) }}
</article>
{% endfor %}
{% elif name == "index.html" %}
<h2>Waiting for a decision</h2><p>Nothing. No image is held.</p>
{% endif %}
{% if taken %}
<h2>A sample of the images that are used and had text blanked</h2>
<p class="soft">They need no approval. Look whether letters are left in the pictures on the right. If so, tell the
person who runs this site: <code>[deidentify].burned_in = "quarantine"</code> leaves out every image with text, and
<code>held_modalities</code> holds more kinds of images back for this page.</p>
{% for card in taken %}
<article class="card"><header><code>{{ card.key }}</code>
  {% if card.frames %}<span class="tag">{{ card.modality }}</span><span class="soft">{{ card.size }} px,
    {{ card.blanked }} rectangle(s) blanked as text</span>{% else %}<span class="tag">{{ card.code }}</span>
    <span class="soft">{{ card.why }}</span>{% endif %}</header>
  {{ pictures(card) }}
</article>
{% endfor %}
{% endif %}
</body></html>
"""
