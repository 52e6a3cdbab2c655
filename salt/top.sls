{#- Which role gets which states: the tiers one after another, the services of one tier started
    side by side before any of them is waited for. -#}
base:
  '*':
    - checked
{%- if not salt['llm_config.check']() %}
    - docker.network
    - images
    - tls
{%- for tier in salt['llm_config.tiers']() %}
{%- for truth in ('configured', 'running', 'healthy') %}
{%- for service in tier if service in salt['llm_config.carried']() %}
    - {{ service }}.{{ truth }}
{%- endfor %}
{%- endfor %}
{%- endfor %}
    - outside.absent
{%- endif %}
