include:
  - checked
{%- if not salt['llm_config.check']() %}
  - docker.running
{%- set network = pillar.llm.site.network %}

The services of this host have their network:
  llm_network.present:
    - name: {{ network.name | json }}
    - subnet: {{ network.subnet | json }}
    - require:
      - llm_docker: The container engine answers
{%- endif %}
