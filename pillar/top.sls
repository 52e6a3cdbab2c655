{#- By minion id from site.yaml, never by grain: a minion can forge its grains. -#}
{%- import_yaml 'site.yaml' as site %}
{%- import_yaml 'services.sls' as catalogue %}
base:
  '*':
    - services
    - environments.{{ site.environment }}
    - site
{%- for host, carried in site.hosts.items() %}
  {%- set groups = ['authority'] if host == site.authority else [] %}
  {%- for name, service in catalogue.llm.services.items() %}
    {%- if service.get('every_host') or name in carried.roles %}
      {%- for secret in service.get('secrets', []) %}
        {%- do groups.append('secrets.' ~ secret.split('.') | first) %}
      {%- endfor %}
    {%- endif %}
  {%- endfor %}
  '{{ host }}': {{ groups | unique | sort | json }}
{%- endfor %}
