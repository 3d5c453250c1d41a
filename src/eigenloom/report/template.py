"""The page's markup, as a Jinja template with autoescape.

It is Python and not a data file so that the code digest of ``render`` sees an edit of it.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:;
 script-src '{{ script_hash }}'">
<title>{{ name }}: eigenloom report</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<h1>What single features know: <code>{{ name }}</code></h1>
<p class="lead">{{ summary }}</p>
<nav aria-label="Sections"><a href="#findings">Findings</a><a href="#methods">Methods</a><a href="#results">By layer</a>
<a href="#figures">Figures</a>{% if galleries %}<a href="#gallery">Gallery</a>{% endif %}
<a href="#ran">What ran</a><a href="#reading">How to read the numbers</a><a href="#all">All numbers</a></nav>
</header>

<section id="findings">
<h2>Findings</h2>
<p class="note">Computed from the results below; numbers that print alike are called equal. Codings and layers are
chosen on the training split, and judged on the validation split.</p>
<div class="topics">
{%- for topic in topics %}
<h3>{{ topic.title }}</h3>
<ul class="findings">
{%- for finding in topic.findings %}
<li class="{{ finding.tone }}">{{ finding.text }}
{%- if finding.links %} <small>
{%- for link in finding.links %} <a href="{{ link.href }}" title="{{ link.title }}">[{{ loop.index }}]</a>{% endfor -%}
</small>{% endif %}</li>
{%- endfor %}
</ul>
{%- else %}
<p>No result is there to speak of.</p>
{%- endfor %}
</div>
</section>

<section id="methods">
<h2>Methods at their best layer</h2>
<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Methods at their best layer">
<table class="sortable wide-table">
<thead><tr>{% for word in ("source", "layer", "basis", "coding") -%}
<th class="text" scope="col">{{ word }}</th>{% endfor %}
{%- for label in headline_table.labels %}<th scope="col">{{ label }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in headline_table.rows %}
<tr class="role-{{ row.role }}">
{%- for word in row.words %}<td class="text">{{ word }}</td>{% endfor %}
{%- for cell in row.cells %}<td data-value="{{ cell.value }}">
{%- if row.href %}<a href="{{ row.href }}">{{ cell.text }}
{%- if cell.floor %}<span class="floor">{{ cell.floor }}</span>{% endif %}</a>
{%- else %}{{ cell.text }}{% endif %}</td>{% endfor %}</tr>
{%- endfor %}</tbody></table></div>
<p class="note">Each method at the layer with the highest Probe R on the training split; below each number, in grey,
what as many random features reach under the same coding and probe. NMSE and L0 on <code>fit_val</code>, the rest on
<code>probe_val</code>. Published rows, where shown, are others' (arXiv 2511.17735): DINOv3 ViT-L/16, NMSE on
ImageNet-1K, the rest on ADE20K; nothing of them was measured here, and their code differs from ours in its space,
its classes and its codes. A click on a heading sorts, a third one restores the order.</p>
</div>
</section>

<section id="results">
<h2>Results by layer</h2>
{%- for grid in grids %}
<h3>{{ grid.source }}</h3>
<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Results of {{ grid.source }}">
<table class="results">
<thead>
<tr><th class="text" rowspan="2" scope="col">Basis and coding</th>
{%- for layer in grid.layers %}
<th class="start text" colspan="{{ headline|length }}" scope="colgroup">{{ layer }}</th>{% endfor %}</tr>
<tr>{% for layer in grid.layers %}{% for metric in headline -%}
<th{% if loop.first %} class="start"{% endif %} scope="col" title="{{ metric.meaning }}">{{ metric.label }}</th>
{%- endfor %}{% endfor %}</tr>
</thead>
{%- for group in grid.groups %}
<tbody>
<tr class="group"><th scope="rowgroup" colspan="{{ 1 + grid.layers|length * headline|length }}">
<span class="dot" style="background:var(--s{{ group.colour }})"></span>{{ group.basis }}</th></tr>
{%- for line in group.lines %}
<tr><th scope="row">{{ line.coding }}</th>
{%- for cell in line.cells %}
<td class="{{ cell.classes }}">
{%- if cell.href %}<a href="{{ cell.href }}" title="{{ cell.title }}"><b>{{ cell.value or "–" }}</b>
{%- if cell.floor %}<span class="floor">{{ cell.floor }}</span>{% endif %}</a>{% else %}missing{% endif %}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
{%- endfor %}
{%- if grid.constant %}
<tbody><tr class="role-floor"><th scope="row">constant score</th>
{%- for cell in grid.constant %}<td class="{{ cell.classes }}">{{ cell.value or "–" }}</td>{% endfor %}</tr></tbody>
{%- endif %}
</table>
</div>
<p class="note">Under each number, in grey, what random features of the same number reach under the same coding and
probe. <span class="below"><b>Orange</b></span>: worse than that. Tinted: the layer with the highest Probe R on the
training split. NMSE is measured on <code>fit_val</code>, Probe R and mAP on <code>probe_val</code>; NMSE is better when
low, the others when high. Each number leads to its <code>metrics.json</code>.</p>
</div>
{%- endfor %}
</section>

<section id="figures">
<h2>Figures</h2>
{%- for figure in figures %}
<figure id="{{ figure.name }}">
<div class="scroll" tabindex="0" role="region" aria-label="{{ figure.title }}">{{ figure.svg }}</div>
<figcaption><b>{{ figure.title }}.</b> {{ figure.caption }}
<a href="{{ figure.name }}.svg">SVG</a></figcaption></figure>
{%- endfor %}
</section>

{%- if galleries %}
<section id="gallery">
<h2>Gallery</h2>
<p class="note">For each class the best feature of every basis, in the layer and coding that the training split prefers,
and the images in which some patch scores highest. Orange: the feature's score, from its lowest to its highest on the
whole split; point at an image to see it bare and to read its score. The patches were not used to fit anything.
AP is the average precision of that single feature on all labelled patches.</p>
{%- for gallery in galleries %}
{%- set position = loop.index0 %}
<h3>{{ gallery.source }}, {{ gallery.split }}</h3>
{%- for class in gallery.classes %}
<details class="card gallery gallery-{{ position }}"{% if loop.first %} open{% endif %}>
<summary>{{ class.name }} <span class="floor">best: {{ class.best }}, AP {{ class.best_ap }}</span></summary>
<div class="methods">
{%- for method in class.methods %}
<div><p><span class="dot" style="background:var(--s{{ method.colour }})"></span>
<a href="{{ method.href }}">{{ method.basis }}</a>
<span class="floor">{{ method.words }}</span><span class="floor">{{ method.where }}</span></p>
<div class="tiles">{%- for tile in method.tiles %}
<span class="tile" role="img" tabindex="0" aria-label="{{ tile.title }}" title="{{ tile.title }}"
 style="background-position:{{ tile.picture }}"><i style="background-position:{{ tile.map }}"></i></span>
{%- endfor %}</div></div>
{%- endfor %}
</div></details>
{%- endfor %}
{%- endfor %}
</section>
{%- endif %}

<section id="ran">
<h2>What ran</h2>
{%- for table in facts %}
<h3>{{ table.title }}</h3>
<div class="card scroll" tabindex="0" role="region" aria-label="{{ table.title }}"><table class="facts">
<thead><tr>{% for column in table.columns %}<th class="text" scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}<td class="{{ 'wide' if loop.last else 'text' }}">{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{%- endfor %}
<p class="note">Every parameter, resolved choice, seed and digest:
{%- for href in manifests %} <a href="{{ href }}">{{ href }}</a>{% endfor %}. Wall times, devices and library versions
are in the <code>run.json</code> beside each artifact, since nothing here may depend on them.</p>
</section>

<section id="reading">
<h2>How to read the numbers</h2>
<dl>
{%- for metric in metrics %}<dt>{{ metric.label }}</dt><dd>{{ metric.meaning }}{{ metric.direction }}</dd>{% endfor %}
<dt>random floor</dt><dd>the same number of random features, made and probed alike: directions drawn at random for
projections, training rows drawn at random as centres for clusters. Choosing the best of many features flatters random
ones, too</dd>
<dt>constant score</dt><dd>a feature that says the same of every row</dd>
</dl>
</section>

<section id="all">
<h2>All numbers</h2>
{%- if missing %}
<p>Missing: {% for item in missing %}<code>{{ item }}</code>{{ ", " if not loop.last }}{% endfor %}.</p>
{%- endif %}
<details><summary>{{ full.rows|length }} rows, floors in italics</summary>
<div class="card scroll" tabindex="0" role="region" aria-label="All numbers"><table class="sortable">
<thead><tr>{% for label in full.words %}<th class="text" scope="col">{{ label }}</th>{% endfor %}
{%- for label in full.labels %}<th scope="col">{{ label }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in full.rows %}
<tr{% if row.is_floor %} class="role-floor"{% endif %}>
{%- for word in row.words %}<td class="text">{{ word }}</td>{% endfor %}
{%- for cell in row.cells %}
<td>{% if row.href %}<a href="{{ row.href }}">{{ cell }}</a>{% else %}{{ cell }}{% endif %}</td>{% endfor %}</tr>
{%- endfor %}</tbody></table></div></details>
<p class="note">In full, for programs:
{%- for href in downloads %} <a href="{{ href }}">{{ href }}</a>{% endfor %}.</p>
</section>
</main>
<script>{{ script }}</script>
</body>
</html>
"""
