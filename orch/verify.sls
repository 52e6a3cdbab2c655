The pillar is sound:
  llm_config.checked:
    - keys: []
    - order: first

A client gets a completion:
  llm_completion.answered:
    - require:
      - llm_config: The pillar is sound
