"""The page of a run's report, as a Jinja template kept in Python so that it ships wherever the code does.

The page loads nothing: no script, no font, no picture from outside.
"""

STYLE = """
:root { --ink:#1f2a37; --soft:#5b6676; --faint:#8a94a3; --line:#e3e8ee; --paper:#ffffff; --ground:#f4f6f8;
        --deep:#0f766e; --deep-ink:#0b4f4a; --wash:#eef8f6; --warm:#b45309; --warm-wash:#fdf6ec; }
* { box-sizing: border-box; }
html { background: var(--ground); }
body { margin: 0 auto; max-width: 980px; padding: 0 28px 64px; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial,
         sans-serif; }
header { padding: 44px 0 22px; }
.eyebrow { color: var(--deep); font-size: 13px; font-weight: 600; letter-spacing: .09em; text-transform: uppercase;
  margin: 0; }
h1 { font-size: 34px; line-height: 1.2; margin: 6px 0 10px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 22px 0 8px; }
p { margin: 8px 0; } .lead { font-size: 17px; color: var(--soft); max-width: 68ch; margin: 0; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 26px 30px; margin:
  18px 0; }
.note { color: var(--soft); font-size: 14px; max-width: 96ch; }
section > h2 + .note { margin-top: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 14px 24px; margin: 20px 0
  0; padding: 0; }
.facts dt { color: var(--faint); font-size: 12.5px; } .facts dd { margin: 0; font-weight: 600; overflow-wrap:
  anywhere; }
.guarantee { background: var(--wash); border: 2px solid var(--deep); }
.guarantee h2 { color: var(--deep-ink); }
.big { display: flex; flex-wrap: wrap; gap: 8px 44px; margin: 16px 0 12px; }
.big div { min-width: 120px; } .big b { display: block; font-size: 36px; line-height: 1.15; font-weight: 650; color:
  var(--deep-ink);
       letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.big span { font-size: 13.5px; color: var(--soft); display: block; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 14px 30px; }
.figures div:not(:first-child) b { color: var(--soft); }
.verdict { font-size: 18px; font-weight: 600; }
.simulated { border: 1.5px dashed var(--faint); border-radius: 8px; padding: 6px 12px; background: var(--ground); }
.figures .simulated b { font-size: 24px; font-weight: 500; color: var(--faint); }
.limits { background: var(--warm-wash); border-left: 4px solid var(--warm); border-radius: 8px; padding: 12px 18px;
  margin: 20px 0 4px; }
.limits h3 { margin: 0 0 4px; color: var(--warm); } .limits ul { margin: 4px 0; padding-left: 20px; } .limits li {
  margin: 3px 0; font-size: 14.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 10px
  0 4px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; border-bottom: 2px solid var(--line);
  padding: 7px 14px 7px 0; }
td { border-bottom: 1px solid var(--line); padding: 7px 14px 7px 0; vertical-align: top; }
tr:last-child td { border-bottom: 0; } .num { text-align: right; padding-right: 22px; white-space: nowrap; }
code, .hash { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size:
  12.5px; }
.hash { color: var(--soft); word-break: break-all; }
pre { background: #14202b; color: #e4edf3; border-radius: 10px; padding: 14px 18px; overflow-x: auto; font-size:
  13.5px; line-height: 1.5;
      font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.samples { margin: 16px 0 0; } .samples figcaption { font-size: 14px; font-weight: 600; margin: 0 0 5px; }
.samples figcaption span { color: var(--faint); font-weight: 400; }
.samples img { display: block; width: 100%; height: auto; border-radius: 6px; }
.chart { display: block; width: 100%; max-width: 760px; height: auto; margin: 12px 0; }
.bar-key { font-size: 13px; color: var(--soft); } .bar-key i { display: inline-block; width: 22px; border-top: 2px
  dashed var(--warm); vertical-align: middle; margin: 0 4px 0 10px; }
footer { color: var(--faint); font-size: 13px; padding: 10px 2px; }
@media (max-width: 640px) { body { padding: 0 14px 40px; } section { padding: 20px 18px; } h1 { font-size: 27px; } }
@media print { html { background: #fff; } body { max-width: none; padding: 0; font-size: 11pt; } section {
  break-inside: avoid; border-color: #bbb; }
               pre { white-space: pre-wrap; background: #f3f3f3; color: #000; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ plan.name }} · GhostNet report</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
  <p class="eyebrow">GhostNet report</p>
  <h1>{{ plan.name }}</h1>
  <p class="lead">{{ lead }}</p>
</header>

<section class="guarantee" id="guarantee">
  <h2>What each {{ privacy.unit }} is guaranteed</h2>
  <div class="big">
    <div><b>{{ privacy.epsilon | epsilon }}</b><span>epsilon (ε): {{ strength }}, smaller is stronger</span></div>
    <div><b>{{ privacy.delta | number }}</b><span>delta (δ)</span></div>
    <div><b>{{ privacy.unit }}</b><span>{{ protects }}</span></div>
  </div>
  <p>Differential privacy, adjacency <strong>{{ privacy.adjacency }}</strong>, at each hospital by itself: whatever
    anyone
  works out from everything that this run released, now or later, would have been almost as likely without any one
  {{ "patient’s images" if privacy.unit == "patient" else "image" }}.{% if odds %} “Almost” means: by a factor of at most e<sup>ε</sup> = {{ odds }},
    except with a
  probability of at most δ.{% endif %}</p>
  {% if privacy.sites %}
  <h3>Spent at each hospital</h3>
  <div class="scroll"><table>
    <tr><th>Hospital</th><th class="num">ε by PLD</th><th class="num">ε by RDP</th><th>Head of its ledger</th></tr>
    {% for site in privacy.sites %}
    <tr><td>{{ site.name }}</td><td class="num">{{ site.epsilon_pld | epsilon }}</td><td class="num">{{
      site.epsilon_rdp | epsilon }}</td>
        <td class="hash">{{ site.ledger_head or "–" }}</td></tr>
    {% endfor %}
  </table></div>
  {% endif %}
  <p class="note">PLD (privacy loss distributions, dp-accounting) is the claim; RDP (Opacus) is a second, looser
    bound, computed
  independently as a check{% if privacy.epsilon_rdp %}: {{ privacy.epsilon_rdp | epsilon }} for the plan{% endif %}.
    Each
  hospital’s own ledger reserved this cost, on disk, before the first patient’s data was read.
  {% if privacy.epsilon_pld_all_hospitals and plan.federation.hospitals_per_patient != 1 %}For a patient held by up to
  {{ plan.federation.hospitals_per_patient }} hospitals, the bound over all of them together is
  ε = {{ privacy.epsilon_pld_all_hospitals | epsilon }}.{% endif %}</p>
  {% if privacy.not_covered %}
  <div class="limits"><h3>Not covered</h3><ul>{% for line in privacy.not_covered %}<li>{{ line }}</li>{% endfor
    %}</ul></div>
  {% endif %}
</section>

<section id="trained">
  <h2>What was trained</h2>
  <p class="note">One generator of synthetic images. The images stayed in the hospitals; only noised values left
    them.</p>
  <dl class="facts">{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
  <p class="note">Plan <span class="hash">{{ plan.hash }}</span></p>
</section>

{% if samples %}
<section id="samples">
  <h2>Synthetic images</h2>
  <p class="note">Drawn from the published sampler with a fixed seed, not picked. Every image below is artificial.</p>
  {% for picture in samples %}
  <figure class="samples"><figcaption>{{ picture.label }} <span>{{ picture.kind }}</span></figcaption>
    <img src="{{ picture.data }}" alt="{{ picture.alt }}"></figure>
  {% endfor %}
</section>
{% endif %}

{% if tasks %}
<section id="utility">
  <h2>How useful the images are</h2>
  {% for task in tasks %}
  {% set found = task.figures %}
  {% if tasks | length > 1 %}<h3>{{ task.name | capitalize }}</h3>{% endif %}
  <p class="note">A {{ task.model_name }} was trained on synthetic images alone and tested on real patients inside the hospitals
  (train on synthetic, test on real). The hospitals released noisy counts only, charged to the same budget.</p>
  <p class="verdict">{{ task.name | capitalize }}: {{ task.verdict }}.</p>
  <div class="big figures">
    <div><b>{{ found.value | share }}</b><span>{{ task.shown.metric }}<br>95 % interval {{
      found.interval[0] | share }} to {{ found.interval[1] | share }}</span></div>
    <div><b>{{ found.chance | share }}</b><span>chance</span></div>
    {% if not task.compared %}{% for name, value in task.shown.simulated %}
    <div class="simulated"><b>{{ value | share }}</b><span>simulation only: {{ name }}</span></div>{% endfor %}{% endif %}
  </div>
  {% if found.informative is defined and not found.informative %}
  <div class="limits"><h3>Too few test patients for the noise</h3><p class="note">At least one class had fewer test
    patients than the noise
  that protects them; its figures are not shown.</p></div>{% endif %}
  <img class="chart" src="{{ task.chart }}" alt="{{ task.shown.chart_words }}">
  <p class="bar-key">Dot: estimate. Band: 95 % interval, noise included.<i></i>chance</p>
  <p class="note">Released: {{ found.released }}.{% if found.method %} Method: {{
    found.method }}.{% endif %}</p>
  {% if task.compared %}<div class="scroll simulated"><table>
    <tr><th>Simulation only, exact</th><th class="num">Trained on synthetic</th><th class="num">Trained on real</th></tr>
    {% for name, synthetic, real in task.compared %}
    <tr><td>{{ name }}</td><td class="num">{{ synthetic | share }}</td><td class="num">{{ real | share }}</td></tr>
    {% endfor %}
  </table></div>{% endif %}
  {% if task.shown.simulated %}<p class="note">The exact figures exist because this run was a simulation on data that its
    operator already holds.
  A real hospital does not release them.{% if found.simulation_again %} They were measured again after the run;
    the released figures are of the {{ task.model_name }} of the run.{% endif %}</p>{% endif %}
  {% endfor %}
</section>
{% endif %}

{% if fidelity %}
<section id="fidelity"><h2>Likeness to real images</h2>
  <dl class="facts">{% for name, value in fidelity %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor
    %}</dl>
</section>
{% endif %}

{% if rounds %}
<section id="timing">
  <h2>Time</h2>
  <p class="note">{{ timing_sentence }}</p>
  <img class="chart" src="{{ timing_chart }}" alt="Seconds of each round: slowest hospital and federation overhead">
  <div class="scroll"><table>
    <tr><th>Round</th><th>Phase</th><th class="num">Wall, s</th><th class="num">Slowest hospital, s</th><th
      class="num">Overhead</th></tr>
    {% for entry in rounds %}
    <tr><td>{{ entry.round }}</td><td>{{ entry.phase }}</td><td class="num">{{ "%.1f" | format(entry.wall_s) }}</td>
        <td class="num">{{ "%.1f" | format(entry.slowest_client_s) }}</td><td class="num">{{ entry.overhead
          }}</td></tr>
    {% endfor %}
  </table></div>
</section>
{% endif %}

{% if sites %}
<section id="hospitals">
  <h2>Hospitals</h2>
  {% if left_out %}
  <div class="limits"><h3>Left out</h3><ul>{% for line in left_out %}<li>{{ line }}</li>{% endfor %}</ul></div>
  {% endif %}
  <div class="scroll"><table>
    <tr>{% for name in site_columns %}<th>{{ name | replace("_", " ") | capitalize }}</th>{% endfor %}</tr>
    {% for site in sites %}<tr>{% for name in site_columns %}<td>{{ site[name] | plain }}</td>{% endfor %}</tr>{%
      endfor %}
  </table></div>
</section>
{% endif %}

<section id="verify">
  <h2>Check it yourself</h2>
  <p class="note">Needs no network: every file, every hospital’s signature, what each answered, and epsilon recomputed
    from that. Get each hospital’s key from the hospital itself; without the keys, anyone could have made the files.</p>
<pre>ghostnet verify {{ sampler_path }}{% for site in sites %} --key {{ site.name }}=KEY{% endfor %}</pre>
  <p class="note">The certificate is <code>sampler/certificate.json</code>; these facts as data are
    <code>report.json</code>.</p>
</section>

<footer>{{ plan.name }}{% if run_id %} · run {{ run_id }}{% endif %} · GhostNet {{ version }} · Synthetic images are
  not for diagnostic use.</footer>
</body>
</html>
"""
