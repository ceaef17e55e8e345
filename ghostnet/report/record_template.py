"""The page of a hospital's budget record, as a Jinja template kept in Python so that it ships wherever the code does.

One A4 page in print, black on white; it loads nothing.
"""

STYLE = """
@page { size: A4; margin: 11mm 14mm; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 190mm; color: #111; background: #fff;
       font: 8.2pt/1.32 "DejaVu Sans", system-ui, "Segoe UI", Arial, sans-serif; }
h1 { font-size: 14pt; margin: 0 0 1mm; }
h2 { font-size: 9.6pt; margin: 2.6mm 0 0.8mm; border-bottom: 0.3mm solid #111; }
p { margin: 0.8mm 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.5mm 2mm 0.5mm 0; }
.runs th, .runs td { border-bottom: 0.2mm solid #999; font-size: 7.4pt; }
.runs .run { width: 50mm; } .runs code { font-size: 6.4pt; }
.facts th { width: 40mm; font-weight: 600; }
code { font: 6.8pt/1.25 "DejaVu Sans Mono", ui-monospace, monospace; overflow-wrap: anywhere; }
.line { display: inline-block; border-bottom: 0.3mm solid #111; height: 6mm; }
.wide { width: 100%; }
.warn { border: 0.4mm solid #111; padding: 1mm 2mm; font-weight: 600; }
.sign td { padding-top: 3mm; }
@media screen { body { padding: 12mm; font-size: 10.5pt; } }
@media print { h2, tr { break-inside: avoid; break-after: avoid; } }
"""

RECORD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Privacy budget record: {{ ledger.site }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>Privacy budget record: {{ ledger.site or "hospital without a name" }}</h1>
<p>Made {{ made }} from the ledger of the state folder <code>{{ state_folder }}</code>, which was in order at that time:
{{ ledger.entries }} entries, newest <code>{{ ledger.head }}</code>.</p>
{% if adopted %}
<p class="warn">This ledger was ADOPTED {{ ledger.adoptions | length }} time(s) although something of it was missing:
earlier spending may be missing from every figure below.
The last time, {{ adopted.time }}: {{ adopted.reason }} (missing: {{ adopted.missing }}).
</p>
{% endif %}

<h2>Budget</h2>
<table class="facts">
<tr><th>Cumulative epsilon</th><td><strong>{{ epsilon_pld | epsilon }}</strong> of a cap of
<strong>{{ limits.max_epsilon | plain }}</strong>; {{ left | epsilon }} left
({{ ledger.runs | length }} run(s), by privacy loss distributions; the looser cross-check, RDP, gives
{{ epsilon_rdp | epsilon }})</td></tr>
<tr><th>Protected</th><td>{{ ledger.protects }}; {{ ledger.adjacency }}</td></tr>
<tr><th>Delta</th><td>{{ limits.delta | plain }}</td></tr>
<tr><th>Reason for delta</th><td>
{% if delta_reason %}{{ delta_reason }}{% else %}<span class="line wide"></span>{% endif %}
</td></tr>
</table>

<h2>Contribution bound</h2>
<p>All images of one patient (each image alone, where the unit is the image) make one vector, which is cut to the bound
before it is added. Below: the bound beside the noise, as the ledger has it for each run. The bound itself is in the
plans, which are known here by their hashes.</p>
{% if runs %}
<table class="runs">
<tr><th class="run">run, plan, reserved</th><th>one unit adds at most, in standard deviations of the noise</th>
<th>epsilon (delta), cap then</th><th>requests</th></tr>
{% for run in runs %}
<tr><td><code>{{ run.run_id }}<br>{{ run.plan_hash[:32] }}</code><br>{{ run.reserved }}</td>
<td>{% for bound in run.bounds %}{{ bound }}<br>{% endfor %}</td>
<td>{{ run.epsilon | epsilon }} ({{ run.delta | plain }}), {{ run.limit | plain }}<br>per {{ run.unit }}</td>
<td>{{ run.answered }} answered{% if run.died %}, {{ run.died }} begun without an answer{% endif %}</td></tr>
{% endfor %}
</table>
{% else %}
<p>No run has been reserved.</p>
{% endif %}
{% if earlier_runs %}
<p>{{ earlier_runs }} earlier run(s) are in the cumulative epsilon and not in this table;
<code>ghostnet site budget</code> lists them.</p>
{% endif %}

<h2>Trust model</h2>
<p>{% if pooled %}In pooled runs this hospital adds a share of the noise, and the others the rest. The cumulative
epsilon holds against whoever receives a sampler, and against a coordinator that works with no other hospital. Against
the coordinator together with all other hospitals (up to {{ pooled.hospitals }} in a run), or a coordinator that played
them because <code>[policy].peers</code> was empty, it is <strong>{{ pooled.epsilon | epsilon }}</strong> of a cap of
{{ limits.max_coalition_epsilon | plain }} at delta {{ limits.delta | plain }}.
{% else %}The hospital's own software adds all of the noise before anything leaves. The cumulative epsilon holds against
anyone, the coordinator and the other hospitals included, whatever they send.
{% endif %}
Relied on: this hospital's machine, disk and installed software. Not counted: other state folders or other software with
the same patients, the same patient at other hospitals, one person under several identifiers.</p>

<h2>Floating-point level</h2>
<p>Sums are exact: what one patient adds is rounded toward zero to the noise's grid, and is to the bit a function of
that patient's data and of public numbers alone. A self-test in the hospital's process decides whether patients may
share a block of arithmetic; otherwise each is computed alone. Noise is discrete Gaussian on the same grid, from the
operating system's entropy. Said of the software that is installed now: GhostNet {{ software.ghostnet }}, sources
<code>{{ software.ghostnet_sha256[:16] }}</code> (ghostnet), <code>{{ software.client_sha256[:16] }}</code> (client),
torch {{ software.torch }}. The ledger does not keep which software an earlier run had; the hospital's statement in that
run's certificate does.</p>

<h2>Audit of the mechanism</h2>
<p>{% if audit %}<strong>{{ "pass" if audit.passed else "FAIL" }}</strong>:
{{ audit.checks - audit.failed | length }} of {{ audit.checks }} checks held (build {{ audit.build }})
{{- "; failed: " ~ audit.failed | join(", ") if audit.failed }}.
Claimed epsilon {{ audit.epsilon | epsilon }} at delta {{ audit.delta | plain }}, {{ audit.adjacency }}; lower bound
measured with canaries {{ audit.lower_bound | plain }} (one run, 95 %). From {{ audit.file }}, SHA-256
<code>{{ audit.sha256 }}</code>; the file is not signed, and does not say when it was made.
{% else %}No audit result was given.{% endif %}</p>

<table class="sign">
<tr><td>Date <span class="line" style="width:32mm"></span></td>
<td>Name <span class="line" style="width:58mm"></span></td>
<td>Signature <span class="line" style="width:52mm"></span></td></tr>
</table>
</body>
</html>
"""
