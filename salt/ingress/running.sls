{% from 'service.jinja' import is_wanted, running with context %}
{{ running('ingress') }}
{%- if is_wanted('ingress') %}

{#- While an ingress is replaced, two of them listen on one port. It is set again after a reboot. #}
The kernel hands on connections that a closed listener has not taken:
  sysctl.present:
    - name: net.ipv4.tcp_migrate_req
    - value: 1
    - config: /run/sysctl.d/60-llm.conf
    - require_in:
      - llm_container: ingress is running
{%- endif %}
