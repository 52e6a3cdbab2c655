{#- Removes containers and what was rendered for them, the last tier first. Volumes, models, images,
    certificates and the pillar with its secrets stay: a deploy brings everything back. -#}
The pillar is sound:
  llm_config.checked:
    - keys: []
    - order: first
{%- if not salt['llm_config.check']([]) %}

Nobody else changes the platform:
  llm_release.locked:
    - what: teardown
    - require:
      - llm_config: The pillar is sound

What is in no catalogue, such as a canary, is removed:
  salt.function:
    - name: llm_service.prune
    - tgt: {{ salt['llm_config.platform']().site.hosts.keys() | list | json }}
    - tgt_type: list
    - expect_minions: True
    - require:
      - llm_release: Nobody else changes the platform
{%- set before = {'step': 'salt: What is in no catalogue, such as a canary, is removed'} %}
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
