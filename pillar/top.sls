{#- By minion id from site.yaml, never by grain: a minion can forge its grains. -#}
{%- from 'catalogue.jinja' import site, services with context %}
base:
  '*':
    - services
    - environments.{{ site.environment }}
    - site
{%- for host, carried in site.hosts.items() %}
  {%- set groups = ['authority'] if host == site.authority else [] %}
  {%- for name, service in services.items() %}
    {%- if service.every_host or name in carried.roles %}
      {%- for secret in service.secrets %}
        {%- do groups.append('secrets.' ~ secret.split('.') | first) %}
      {%- endfor %}
    {%- endif %}
  {%- endfor %}
  '{{ host }}': {{ groups | unique | sort | json }}
{%- endfor %}
