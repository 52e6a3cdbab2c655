{#- Certificates of the services that this host carries. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}
{%- set platform = salt['llm_config.platform']() %}
{%- if platform.host == platform.site.authority %}

This host is the authority:
  llm_certificate.authority
{%- endif %}
{%- for name in salt['llm_config.carried']() if platform.services[name].certificate %}

{{ name }} has a valid certificate:
  llm_certificate.valid:
    - name: {{ name }}
    {%- if platform.host == platform.site.authority %}
    - require:
      - llm_certificate: This host is the authority
    {%- endif %}
{%- endfor %}
{%- endif %}
