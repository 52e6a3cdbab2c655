{#- The whole platform, tier by tier, each gated by its health, then a real completion. Any step
    that fails ends it, for every step requires the one before, and what was switched goes back. No
    batch, no queue, and each target is an explicit list, so that a host that is down is missed and
    not left out. No failhard: it would skip the way back. -#}
{%- from 'orch/steps.jinja' import before, begun, ended, requires, step with context %}
{%- set keys = ['llm_announced', 'llm_canary', 'llm_services', 'llm_what'] %}

The pillar is sound:
  llm_config.reviewed:
    - keys: {{ keys | json }}
    - order: first
    {{- requires('The pillar is sound', 'llm_config') }}
{% if not salt['llm_config.check'](keys) %}
{%- set hosts = salt['llm_config.platform']().site.hosts.keys() | list %}

{%- set chosen = pillar.get('llm_services') %}
{%- set canary = pillar.get('llm_canary') %}

{{ begun(pillar.get('llm_what', 'deploy')) }}
{{ step('Every host has room for its services', ['preflight'], hosts) }}
{{ step('Every host has engine, certificates and images', ['docker', 'tls', 'images'], hosts) }}

{%- if canary %}
{%- set hosts_of_canary = salt['llm_config.hosts'](canary.service) %}
{{ step('A canary of ' ~ canary.service ~ ' runs', ['canary.running'], hosts_of_canary) }}
The canary of {{ canary.service }} is compared with what serves:
  llm_canary.proved:
    - name: {{ canary.service }}
    - hosts: {{ hosts_of_canary | json }}
    {%- for limit in ('window', 'least', 'errors', 'slower') if limit in canary %}
    - {{ limit }}: {{ canary[limit] }}
    {%- endfor %}
    {{- requires('The canary of ' ~ canary.service ~ ' is compared with what serves', 'llm_canary') }}
{% endif %}

{%- for tier in salt['llm_config.tiers']() %}
{%- set services = tier if not chosen else tier | select('in', chosen) | list %}
{%- set carriers = [] %}
{%- for service in services %}
{%- do carriers.extend(salt['llm_config.hosts'](service)) %}
{%- endfor %}
{%- set sls = [] %}
{%- for truth in ('running', 'healthy') %}
{%- for service in services %}
{%- do sls.append(service ~ '.' ~ truth) %}
{%- endfor %}
{%- endfor %}
{%- if services %}
{{ step(services | join(' and ') ~ (' is' if services | length == 1 else ' are') ~ ' healthy', sls, carriers | unique | list) }}
{%- endif %}
{%- endfor %}
{%- if canary %}
{{ step('The canary of ' ~ canary.service ~ ' is gone', ['canary.absent'], hosts_of_canary) }}
{%- endif %}
{%- if not chosen %}
{{ step('Nothing outside of the catalogue is left', ['outside.absent'], hosts) }}
{%- endif %}
{{ ended() }}
{% endif %}
