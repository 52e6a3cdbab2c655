# One state for each container.
Network exists:
  llm_network.present:
    - name: peer-ours
    - subnet: {{ pillar['subnet'] }}
{% for index in range(12) %}
Container {{ index }} runs:
  llm_container.running:
    - name: peer-{{ index }}
    - image: {{ pillar['image'] }}
    - memory: 128m
    - cpus: 0.25
    - network: peer-ours
    - environment: {INDEX: "{{ index }}"}
    - require: [Network exists]
{% endfor %}
