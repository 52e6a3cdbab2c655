{#- What was tried of the service `llm_canary` of a deploy's pillar has had its time. -#}
{%- set canary = pillar.get('llm_canary', {}) %}
include:
  - checked
{%- if canary and not salt['llm_config.check']() %}

{{ canary.service }} has no canary:
  llm_canary.absent:
    - name: {{ canary.service }}
{%- endif %}
