{#- All images of this host, built side by side. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}
  - docker.network

The images of this host are built:
  llm_image.built:
    - images: {{ salt['llm_config.carried']() | json }}
    - require:
      - sls: docker.network
{%- endif %}
