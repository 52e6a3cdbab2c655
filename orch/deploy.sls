{#- The whole platform, tier by tier, each gated by its health, then a real completion. Any step
    that fails ends it, for every step requires the one before, and what was switched goes back. No
    batch, no queue, and each target is an explicit list, so that a host that is down is missed and
    not left out. No failhard: it would skip the way back. -#}
{%- from 'orch/steps.jinja' import before, begun, ended, requires, step with context %}

The pillar is sound:
  llm_config.reviewed:
    - order: first
    {{- requires('The pillar is sound', 'llm_config') }}
{% if not salt['llm_config.check']() %}
{%- set hosts = salt['llm_config.platform']().site.hosts.keys() | list %}

{{ begun(pillar.get('llm_what', 'deploy')) }}
{{ step('Every host has room for its services', ['preflight'], hosts) }}
{{ step('Every host has engine, certificates and images', ['docker', 'tls', 'images'], hosts) }}

{%- for tier in salt['llm_config.tiers']() %}
{%- set carriers = [] %}
{%- for service in tier %}
{%- do carriers.extend(salt['llm_config.hosts'](service)) %}
{%- endfor %}
{%- set sls = [] %}
{%- for truth in ('running', 'healthy') %}
{%- for service in tier %}
{%- do sls.append(service ~ '.' ~ truth) %}
{%- endfor %}
{%- endfor %}
{{ step(tier | join(' and ') ~ (' is' if tier | length == 1 else ' are') ~ ' healthy', sls, carriers | unique | list) }}
{%- endfor %}
{{ step('Nothing outside of the catalogue is left', ['outside.absent'], hosts) }}
{{ ended() }}
{% endif %}
