{#- What was deployed here once and the catalogue does not want here any more: it goes when what
    may have taken its place is well. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}
{%- set carried = salt['llm_config.carried']() %}
{%- for service in carried %}
  - {{ service }}.healthy
{%- endfor %}

Nothing outside of the catalogue is here:
  llm_service.pruned:
    - require:
      {%- for service in carried %}
      - sls: {{ service }}.healthy
      {%- endfor %}
{%- endif %}
