{#- An Envoy does not start without the files that say where services are. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}

There is a file for the replicas of each service:
  llm_mesh.known:
    - services: {{ salt['llm_mesh.services']() | json }}
{%- endif %}
