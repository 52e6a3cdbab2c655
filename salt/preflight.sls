{#- Before anything is changed: whether this host can carry what it shall. An engine that is not
    there yet is installed afterwards. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}

This host has what its services need:
  llm_preflight.ready:
    - engine_expected: False
{%- endif %}
