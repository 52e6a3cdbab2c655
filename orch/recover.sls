{#- What an interrupted release has switched goes back, when its own orchestration cannot. -#}
The pillar is sound:
  llm_config.checked:
    - keys: [llm_number, llm_why]
    - order: first

What release {{ pillar.get('llm_number', 0) }} has switched goes back:
  llm_release.taken_back:
    - number: {{ pillar.get('llm_number', 0) }}
    - why: {{ pillar.get('llm_why', []) | json }}
    - require:
      - llm_config: The pillar is sound
