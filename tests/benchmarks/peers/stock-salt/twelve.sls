# With the states of saltext-dockermod.
Network exists:
  docker_network.present:
    - name: peer-salt
{% for index in range(12) %}
Container {{ index }} runs:
  docker_container.running:
    - name: peer-salt-{{ index }}
    - image: {{ pillar['image'] }}
    - mem_limit: 128m
    - cpu_period: 100000
    - cpu_quota: 25000
    - restart_policy: always
    - networks: [peer-salt]
    - environment: [{INDEX: "{{ index }}"}]
    - require: [Network exists]
{% endfor %}
