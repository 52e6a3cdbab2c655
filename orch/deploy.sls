{#- The whole platform, tier by tier, each gated by its health, then a real completion. Any step
    that fails ends it: every step requires the one before. No batch, no queue, and each target is
    an explicit list, so that a host that is down is missed and not left out. -#}
{%- set before = {'step': None} %}

{%- macro step(id, sls, hosts, pillar={}) %}
{{ id }}:
  salt.state:
    - tgt: {{ hosts | json }}
    - tgt_type: list
    - sls: {{ sls | json }}
    {%- if pillar %}
    - pillar: {{ pillar | json }}
    {%- endif %}
    {{- requires(id) }}
{% endmacro %}

{%- macro requires(id, module='salt') %}
    {%- if before.step %}
    - require:
      - {{ before.module }}: {{ before.step }}
    {%- endif %}
    {%- do before.update({'step': id, 'module': module}) %}
{%- endmacro %}

The pillar is sound:
  llm_config.reviewed:
    - order: first
    {{- requires('The pillar is sound', 'llm_config') }}
{% if not salt['llm_config.check']() %}
{%- set platform = salt['llm_config.platform']() %}
{%- set hosts = platform.site.hosts.keys() | list %}

{%- set now = {'llm_master_time': None | strftime('%s') | int} %}
{{ step('Every host has room for its services', ['preflight'], hosts, now) }}
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

A client gets a completion:
  llm_completion.answered:
    - order: last
    {{- requires('A client gets a completion', 'llm_completion') }}
{% endif %}
