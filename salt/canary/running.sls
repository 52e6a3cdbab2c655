{#- What the service `llm_canary` of a deploy's pillar is to become takes a part of its requests. -#}
{%- set canary = pillar.get('llm_canary', {}) %}
include:
  - checked
{%- if canary and not salt['llm_config.check']() %}
  - docker.network
  - {{ canary.service }}.configured

The image of the canary is built:
  llm_image.built:
    - name: {{ canary.service }}
    - require:
      - sls: docker.network

A canary of {{ canary.service }} runs:
  llm_canary.running:
    - name: {{ canary.service }}
    - weight: {{ canary.weight }}
    - require:
      - sls: {{ canary.service }}.configured
      - llm_image: The image of the canary is built
{%- endif %}
