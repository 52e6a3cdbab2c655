# One state for all containers, which are started side by side.
Network exists:
  llm_network.present:
    - name: peer-ours
    - subnet: {{ pillar['subnet'] }}

Containers run:
  llm_container.running:
    - image: {{ pillar['image'] }}
    - memory: 128m
    - cpus: 0.25
    - network: peer-ours
    - containers:
{%- for index in range(12) %}
        peer-{{ index }}: {environment: {INDEX: "{{ index }}"}}
{%- endfor %}
    - require: [Network exists]
