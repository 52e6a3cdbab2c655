# As many steps on a host as a deploy has; none does anything.
{%- set folder = sls.rpartition('.')[0] %}
{%- for number in range(pillar['steps']) %}
Step {{ number }}:
  salt.state:
    - tgt: [{{ pillar['host'] }}]
    - tgt_type: list
    - sls: {{ folder }}.nothing
    {%- if number %}
    - require:
      - salt: Step {{ number - 1 }}
    {%- endif %}
{%- endfor %}
