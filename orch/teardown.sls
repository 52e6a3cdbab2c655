{#- Removes containers and what was rendered for them, the last tier first. Volumes, models, images,
    certificates and the pillar with its secrets stay: a deploy brings everything back. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}

Nobody else changes the platform:
  llm_release.locked:
    - what: teardown
{%- set before = {'step': 'llm_release: Nobody else changes the platform'} %}
{%- for tier in salt['llm_config.tiers']() | reverse %}
{%- set carriers = [] %}
{%- for service in tier %}
{%- do carriers.extend(salt['llm_config.hosts'](service)) %}
{%- endfor %}
{%- set id = tier | join(' and ') ~ ' stopped' %}

{{ id }}:
  salt.state:
    - tgt: {{ carriers | unique | list | json }}
    - tgt_type: list
    - sls: {{ tier | map('regex_replace', '$', '.absent') | list | json }}
    - require:
      - {{ before.step }}
{%- do before.update({'step': 'salt: ' ~ id}) %}
{%- endfor %}
{%- endif %}
