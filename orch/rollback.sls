{#- What served at the end of an earlier release serves again, by a start and not by a rebuild:
    containers, configuration and secrets of then. Itself a release, proved and recorded. -#}
{%- from 'orch/steps.jinja' import before, begun, ended, number, requires, step with context %}
{%- set keys = ['llm_release'] %}

The pillar is sound:
  llm_config.checked:
    - keys: {{ keys | json }}
    - order: first
    {{- requires('The pillar is sound', 'llm_config') }}
{% if not salt['llm_config.check'](keys) %}
{%- set release = pillar.get('llm_release', 0) %}

{{ begun('rollback to ' ~ release) }}

Release {{ release }} serves:
  llm_release.returned:
    - number: {{ number }}
    - release: {{ release }}
    {{- requires('Release ' ~ release ~ ' serves', 'llm_release') }}
{{ ended() }}
{% endif %}
